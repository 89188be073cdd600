#!/usr/bin/env bash
# bash run.sh              set up, then the main job: a small study of AR and TAR on each corpus, and its tables
# bash run.sh setup        set up only
# bash run.sh test         set up, then ruff and mypy, then the tests
# bash run.sh test ...     set up, then the tests that the words, which go to pytest, choose
# bash run.sh study NAME   set up, then the study results/NAME (further words go to lm.sweep)
# bash run.sh paper        set up, then AWD-LSTM on PTB and WikiText-2, on a GPU: in 100 and 90 epochs, with a cache (minutes:
#                          docs/gpu.md; results in results/ptb-fast and results/wikitext-2-fast),
#                          then as published, in 500 and 750, fine-tuned, with a cache (hours); on a CPU days
#
# Needs Python >= 3.11 with pip. Packages go into .venv (VENV=DIR: another place; an active environment is used instead).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Threads that wait for others sleep, as in `lm/base/threads.py`: spinning ones wait for a CPU that another process has.
if [ -z "${OMP_WAIT_POLICY:-}${GOMP_SPINCOUNT:-}${KMP_BLOCKTIME:-}" ]; then
  export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000
fi

usage() {
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

setup() {
  local python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or later is needed; PYTHON=/path/to/python bash run.sh takes another one" >&2
    exit 2
  fi
  place=${VENV:-${VIRTUAL_ENV:-.venv}}
  if [ ! -x "$place/bin/python" ]; then
    if [ -n "$(ls -A "$place" 2>/dev/null)" ]; then
      echo "error: $place is neither empty nor a virtual environment; delete it, or name another place by VENV=DIR" >&2
      exit 2
    fi
    echo "creating $place" >&2
    if ! "$python" -m venv "$place"; then
      rm -rf "$place" # half of one would be taken for whole by the next start
      echo "error: no venv module; on Debian: apt install python3-venv" >&2
      exit 2
    fi
  fi
  PATH="$(cd "$place/bin" && pwd):$PATH"
  install_packages requirements.txt || exit
}

# Install what FILE names into the environment. A stamp there has the checksum of the file that was installed
# last, so that a second start asks no one for anything.
install_packages() {
  local stamp="$place/.lm-${1%.txt}" wanted
  wanted=$(cksum <"$1")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $1 into $place (a few minutes the first time)" >&2
    python -m pip install --quiet --disable-pip-version-check -r "$1" || return
    echo "$wanted" >"$stamp"
  fi
}

# Whether there are files of a corpus on this machine; then exit code 3 of lm.corpus says that they are damaged.
is_there() {
  compgen -G "data/$1/*" >/dev/null || compgen -G "${LM_CORPORA:-data}/$1/*" >/dev/null
}

# The corpora that can be had, in CORPORA; the one made from Python's documentation where there is none.
find_corpora() {
  local name status
  CORPORA=()
  for name in ptb wikitext-2; do
    status=0
    python -m lm.corpus --dataset "$name" || status=$?
    if [ $status -eq 0 ]; then
      CORPORA+=("$name")
    elif [ $status -ne 3 ] || is_there "$name"; then
      exit "$status"
    fi # else it cannot be had here
    echo
  done
  if [ ${#CORPORA[@]} -eq 0 ]; then
    echo "=========================================================================================="
    echo "Neither PTB nor WikiText-2 can be had here (see above). What follows runs on pydocs, English"
    echo "prose out of Python's documentation: its perplexities compare with nothing published."
    echo "=========================================================================================="
    python -m lm.corpus --dataset pydocs
    CORPORA=(pydocs)
  fi
}

case ${1:-quick} in
  quick)
    setup
    find_corpora
    for name in "${CORPORA[@]}"; do
      python -m lm.sweep "results/quick/$name"
    done
    ;;
  setup) setup ;;
  test)
    setup
    # Other programs that exports are for. A machine that cannot have them tests all else.
    install_packages requirements-export.txt || echo "tests of exports for transformers and ONNX will be skipped" >&2
    shift
    if [ $# -eq 0 ]; then
      echo "== ruff check, ruff format --check, mypy ==" >&2
      python -m ruff check
      python -m ruff format --check
      python -m mypy
      echo "== pytest ==" >&2
    fi
    # A worker a CPU, of which more than four would mostly import PyTorch; a file's tests share what they train.
    python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
    # Those do not see GPUs (tests/conftest.py).
    if [ $# -eq 0 ] && nvidia-smi >/dev/null 2>&1; then
      exec python -m pytest -m gpu
    fi
    ;;
  study)
    [ $# -ge 2 ] || usage
    setup
    shift
    exec python -m lm.sweep "results/$1" "${@:2}"
    ;;
  paper)
    setup
    for name in ptb wikitext-2; do
      run="runs/paper/$name-fast"
      python -m lm.train --preset awd-lstm-fast --dataset "$name" --out-dir "$run" --save-minutes 1 --resume auto
      python -m lm.evaluate "$run" --adapt none cache
    done
    for name in ptb wikitext-2; do
      run="runs/paper/$name"
      python -m lm.train --preset awd-lstm --dataset "$name" --out-dir "$run" --resume auto
      python -m lm.train --finetune "$run" --out-dir "$run-finetuned" --resume auto
      python -m lm.evaluate "$run-finetuned" --adapt none cache
    done
    ;;
  *) usage ;;
esac
