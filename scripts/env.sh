# Prepares a Python environment; to be sourced by bash:  source scripts/env.sh core|dev|docs
# Sets ROOT (this project) and PYTHON (the environment's interpreter), and returns 1 if it cannot.
# An active virtual or conda environment is used as it is found; otherwise .venv is made here.
# FLOWCACHE_NO_INSTALL=1 takes the active environment without installing anything.

ROOT="$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)"
export ROOT

_fc_say() { printf 'flowcache: %s\n' "$*" >&2; }

_fc_env_dir() { # the environment to use
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        printf '%s' "$VIRTUAL_ENV"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
        printf '%s' "$CONDA_PREFIX"
    else
        printf '%s' "$ROOT/.venv"
    fi
}

_fc_is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

_fc_make_venv() { # ENV_DIR; pip is the last thing that venv puts there
    [ -x "$1/bin/pip" ] && return
    # an environment of other tools, such as uv, may be whole without pip
    [ -x "$1/bin/python" ] && "$1/bin/python" -m ensurepip -q >&2 2>/dev/null && return
    local python
    for python in python3.11 python3.12 python3.13 python3 ""; do
        _fc_is_supported "$python" && break
    done
    [ -n "$python" ] || { _fc_say "no Python 3.11 or newer was found on PATH."; return 1; }
    _fc_say "making $1 with $python"
    "$python" -m venv --clear "$1" >&2 ||
        { _fc_say "$python could not make a virtual environment; is its venv module installed?"; return 1; }
}

_fc_stamp() { # SET: what an up-to-date installation of it is known by
    local files=("$ROOT"/{pyproject.toml,constraints.txt,requirements.txt})
    [ "$1" = core ] || files+=("$ROOT/requirements-$1.txt")
    { printf '%s\n' "$ROOT"; cat -- "${files[@]}"; } | cksum
}

_fc_is_installed() { # SET ENV_DIR
    [ -s "$2/.flowcache-$1" ] && [ "$(cat -- "$2/.flowcache-$1")" = "$(_fc_stamp "$1")" ]
}

_fc_install() { # SET ENV_DIR
    local file=requirements.txt size="; this downloads PyTorch and can take minutes"
    [ "$1" = core ] || file="requirements-$1.txt"
    [ "$1" != docs ] || size=
    [ "$2" != "$ROOT/.venv" ] || _fc_make_venv "$2" || return
    _fc_is_supported "$2/bin/python" ||
        { _fc_say "the environment $2 has no Python 3.11 or newer."; return 1; }
    _fc_say "installing $file into $2 (once$size)"
    (cd -- "$ROOT" && "$2/bin/python" -m pip install -qq -r "$file") >&2 ||
        { _fc_say "pip could not install $file into $2."; return 1; }
    [ "$1" = docs ] || _fc_stamp core >"$2/.flowcache-core" || return # docs go without the project
    _fc_stamp "$1" >"$2/.flowcache-$1"
}

_fc_install_once() ( # SET ENV_DIR; one process at a time
    if command -v flock >/dev/null; then
        exec 9>"$ROOT/.venv.lock" && flock 9 || exit
    fi
    _fc_is_installed "$1" "$2" || _fc_install "$1" "$2"
)

_fc_prepare() { # SET
    case "${1:-}" in
        core | dev | docs) ;;
        *) _fc_say "usage: source scripts/env.sh core|dev|docs"; return 1 ;;
    esac
    local env_dir
    env_dir="$(_fc_env_dir)"
    [ -n "${FLOWCACHE_NO_INSTALL:-}" ] || _fc_is_installed "$1" "$env_dir" ||
        _fc_install_once "$1" "$env_dir" || return 1
    PYTHON="$env_dir/bin/python"
    [ -x "$PYTHON" ] || { _fc_say "there is no $PYTHON."; return 1; }
    export PYTHON
}

# On a busy machine, threads that spin while they wait take the cores from those that they wait for.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"

_fc_prepare "$@"
