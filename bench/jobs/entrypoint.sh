# Run `python "$@"` with the interpreter of this cluster's Ray, whatever `python` comes first on the PATH: that of the
# job's own environment if Ray has made one (pip), else the one with which the raylet starts its workers.
# A job's entry point is started by its supervisor, which is a Ray worker, which is started by the raylet.
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
        echo "no Python found on this node, although Ray's workers run here: check Ray's installation" >&2
        exit 2
    }
    echo "the Python of Ray's workers was not found ('$found'): $python runs instead" >&2
fi
exec "$python" "$@"
