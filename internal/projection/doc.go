// Package projection keeps read models: tables that are a fold over all streams. A Definition says what to do with each type of event; a Runner reads the order of
// all events and lets the definitions' tables follow it. A read model and its checkpoint move in one transaction, so it is never a half of anything, however often
// the process dies. Start reading at Definition, then at feeder.step.
//
// Every row of a read model carries the generation that wrote it. A rebuild writes a new generation beside the one that is read, and when it has caught up
// takes its place in one transaction; views show the live generation only. No right to change the schema is needed for that.
package projection
