#!/bin/sh
# Run one notebook; print what it printed where it fails, and its last line where it does not.
log="out/notebooks/$(basename "$2").log"
echo "$2"
if "$1" -u "$2" >"$log" 2>&1; then
    echo "$2: $(tail -n 1 "$log")"
else
    cat "$log"
    echo "$2 failed" >&2
    exit 1
fi
