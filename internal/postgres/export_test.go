package postgres

// For tests with migrations of their own.
var (
	MigrateFS = migrate
	StatusFS  = status
	CheckFS   = checkSchema
)
