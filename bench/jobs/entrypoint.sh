# Becomes `python "$@"` with the interpreter that this cluster's Ray runs on, whatever `python` is first on the PATH:
# that of the job's own environment where Ray has made one (pip), else the one with which the raylet starts its workers.
# The parent of a job's entry point is its supervisor, a Ray worker, and the parent of that is the raylet.
python=
case "${VIRTUAL_ENV:-}" in
*/runtime_resources/*) python=$VIRTUAL_ENV/bin/python ;;
*)
    raylet=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$PPID/status" 2>/dev/null)
    python=$(tr '\0' '\n' <"/proc/$raylet/cmdline" 2>/dev/null |
        sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p' | head -n 1)
    ;;
esac
if [ ! -x "$python" ]; then
    found=$python
    python=$(command -v python3 || command -v python) || {
        echo "no Python found on this node: the job starts where Ray's workers do" >&2
        exit 2
    }
    echo "the Python of Ray's workers was not found ('$found'): $python runs instead" >&2
fi
exec "$python" "$@"
