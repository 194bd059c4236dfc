#!/bin/sh
# Prints the first Python >= 3.11 on PATH that really runs and can make virtual environments; says so if there is none.
# With an argument, a name or a path: that one or none.
#
# A name on PATH proves nothing: a version manager's shim exists for versions that are switched off, and some
# distributions ship python3 without venv and ensurepip. So every candidate is tried.
works='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
advice="try PYTHON=/path/to/python3.12; on Debian: apt-get install python3-venv"
set -f
if [ $# -gt 0 ]; then
    if "$1" -c "$works" >/dev/null 2>&1; then
        echo "$1"
        exit 0
    fi
    echo "penstock: $1 is not a Python 3.11 or newer with venv and ensurepip ($advice)" >&2
    exit 1
fi
for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
    IFS=:
    for folder in $PATH; do
        if [ -x "$folder/$name" ] && "$folder/$name" -c "$works" >/dev/null 2>&1; then
            echo "$folder/$name"
            exit 0
        fi
    done
done
echo "penstock: no Python 3.11 or newer with venv and ensurepip on PATH ($advice)" >&2
exit 1
