# guard.sh DIRECTORY: waits until standard input is closed, which it is when
# the owner of the directory has closed it or has died; then ends the processes
# whose ids are in DIRECTORY/run and removes the directory.
dir=$1

# ours PID: the process is alive and its command line mentions the directory.
# A number alone may long be another process's.
ours() {
	{ tr '\0' ' ' <"/proc/$1/cmdline" || ps -o args= -p "$1"; } 2>/dev/null | grep -qF -e "$dir/"
}

# signal NAME: sends it to our processes; fails if there are none.
signal() {
	found=1
	for file in "$dir"/run/*; do
		[ -f "$file" ] || continue
		read -r pid <"$file" || continue
		if ours "$pid"; then
			kill -s "$1" "$pid" 2>/dev/null && found=0
		fi
	done
	return $found
}

while read -r _; do :; done

# SIGQUIT is PostgreSQL's immediate shutdown, and ends a Go program at once.
if signal QUIT; then
	tries=0
	while [ $tries -lt 50 ] && signal QUIT; do
		sleep 0.1
		tries=$((tries + 1))
	done
	signal KILL
fi
rm -rf "$dir"
