#!/usr/bin/env bash
# Starts a Ray head on this machine with token authentication, on ports that collide with no other Ray, and stops it
# with everything it started on Ctrl-C or SIGTERM. It never runs `ray stop`, which would end every Ray on the machine.
#
# Guarantees: the folder given by --temp-dir holds `token` (mode 600) and, only once the head answers, `head.env` with
# the variables a client needs; both lie beside Ray's own logs. Exit code 2 for a wrong option, 1 when the head fails.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: cluster/local_head.sh [options]

  --temp-dir DIR           new folder for Ray's files, the token and head.env; short, for socket paths end at 107 bytes
                           (default: a new folder under /tmp)
  --token-file FILE        use this token instead of a new one
  --node-ip ADDRESS        address at which other machines reach this one and its dashboard (default: none does)
  --labels KEY=VALUE,...   labels of this node
  --port N                 GCS                      (default: a free port, as for all below)
  --dashboard-port N       dashboard and job server
  --agent-port N           dashboard agent, HTTP
  --client-port N          Ray client server
  --worker-ports MIN-MAX   range for worker processes (default: any free port for each)
  --num-cpus N             logical CPUs (default: the cores)
  --num-gpus N             GPUs (default: those found)
  --object-store-gib N     whole GiB of the object store (default 1)
TEXT
}

fail() {
  echo "local_head: $1" >&2
  exit "${2:-2}"
}

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
temp_dir="" token_file="" port="" dashboard_port="" agent_port="" client_port=""
worker_ports=0-0 object_store_gib=1 host=127.0.0.1
passed_on=()

while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
  esac
  [[ $# -ge 2 ]] || fail "option $1 needs a value; see --help"
  case "$1" in
    --temp-dir) temp_dir="$2" ;;
    --token-file) token_file="$2" ;;
    --node-ip) host="$2" passed_on+=("--node-ip-address=$2") ;;
    --port) port="$2" ;;
    --dashboard-port) dashboard_port="$2" ;;
    --agent-port) agent_port="$2" ;;
    --client-port) client_port="$2" ;;
    --worker-ports) worker_ports="$2" ;;
    --num-cpus | --num-gpus | --labels) passed_on+=("$1=$2") ;;
    --object-store-gib) object_store_gib="$2" ;;
    *) fail "unknown option $1; see --help" ;;
  esac
  shift 2
done
[[ "$worker_ports" =~ ^[0-9]+-[0-9]+$ ]] || fail "--worker-ports $worker_ports is not of the form MIN-MAX"
[[ "$object_store_gib" =~ ^[1-9][0-9]*$ ]] || fail "--object-store-gib $object_store_gib is not a whole number of GiB"

# The head's PATH is also the PATH of every job entrypoint: `python` in a submitted command is the first one on it.
if [[ -x "$repository/.venv/bin/ray" ]]; then
  PATH="$repository/.venv/bin:$PATH"
fi
command -v ray >/dev/null || fail "no ray command in $repository/.venv/bin or on PATH; run \`make\` or activate the environment" 1

if [[ -z "$temp_dir" ]]; then
  temp_dir="$(mktemp -d /tmp/vsr1-head.XXXX)"
else
  mkdir -p "$temp_dir"
  temp_dir="$(cd "$temp_dir" && pwd)"
fi
# Ray appends about 70 characters (session name and socket name) to the folder.
[[ ${#temp_dir} -le 36 ]] || fail "--temp-dir $temp_dir is longer than 36 characters; socket paths under it would not fit in 107 bytes"
rm -f "$temp_dir/head.env"

if [[ -z "$token_file" ]]; then
  token_file="$temp_dir/token"
  # `ray get-auth-token --generate` writes to the home folder only, and fails when RAY_AUTH_TOKEN_PATH names a new file.
  (umask 077 && python -I -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token_file")
fi
[[ -s "$token_file" ]] || fail "token file $token_file is missing or empty"

# Four sockets held open together, so that the four ports differ.
read -r free_1 free_2 free_3 free_4 < <(python -I -c '
import socket
sockets = [socket.socket() for _ in range(4)]
for item in sockets:
    item.bind(("", 0))
print(*[item.getsockname()[1] for item in sockets])')
port="${port:-$free_1}" dashboard_port="${dashboard_port:-$free_2}"
agent_port="${agent_port:-$free_3}" client_port="${client_port:-$free_4}"

unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_file"
# On SIGTERM the head would wait up to 30 s for jobs to leave; a local head has nowhere to send them.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

setsid ray start --head --block --disable-usage-stats \
  --temp-dir="$temp_dir" --port="$port" --dashboard-host="$host" --dashboard-port="$dashboard_port" \
  --dashboard-agent-listen-port="$agent_port" --ray-client-server-port="$client_port" \
  --min-worker-port="${worker_ports%-*}" --max-worker-port="${worker_ports#*-}" \
  --object-store-memory="$((object_store_gib * 1024 * 1024 * 1024))" ${passed_on[@]+"${passed_on[@]}"} \
  >"$temp_dir/head.log" 2>&1 &
head=$!

# SIGTERM goes to `ray start` alone, which stops the raylet first and lets it end its workers; a signal to the whole
# group would kill the raylet under its workers, and they, each in a group of its own, would stay behind.
stop() {
  trap - EXIT INT TERM
  rm -f "$temp_dir/head.env"
  kill -TERM "$head" 2>/dev/null || true
  for _ in $(seq 60); do
    kill -0 "$head" 2>/dev/null || break
    sleep 0.25
  done
  kill -KILL -- "-$head" 2>/dev/null || true
  wait "$head" 2>/dev/null || true
  echo "local_head: stopped; logs are in $temp_dir"
}
trap stop EXIT
trap 'exit 0' INT TERM

# The job server answers some seconds before the node can run anything, so ask for a living node.
has_living_node() {
  python -I - "http://$host:$dashboard_port/nodes?view=summary" "$token_file" <<'PYTHON'
import json
import sys
import urllib.request

url, token_file = sys.argv[1:]
with open(token_file) as file:
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + file.read().strip()})
try:
    with urllib.request.urlopen(request, timeout=5) as answer:
        nodes = json.load(answer)["data"]["summary"]
except OSError:
    sys.exit(1)
sys.exit(not any(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes))
PYTHON
}
for attempt in $(seq 60); do
  if ! kill -0 "$head" 2>/dev/null; then
    tail -n 20 "$temp_dir/head.log" >&2
    fail "the head exited while starting; log: $temp_dir/head.log" 1
  fi
  has_living_node && break
  [[ $attempt -lt 60 ]] || fail "no living node within a minute; log: $temp_dir/head.log" 1
  sleep 1
done

cat >"$temp_dir/head.env.new" <<TEXT
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$token_file
export RAY_API_SERVER_ADDRESS=http://$host:$dashboard_port
export RAY_ADDRESS=$host:$port
TEXT
mv "$temp_dir/head.env.new" "$temp_dir/head.env"

cat <<TEXT
local_head: running; Ctrl-C stops it. In another terminal, from the repository:

  source $temp_dir/head.env
  vsr1 submit grpo -c configs/toy.yaml run_dir=$repository/runs/job data.root=$repository/runs/job/data

TEXT
wait "$head" || fail "the head ended on its own; log: $temp_dir/head.log" 1
