"""Check deploy/compose without an engine: the command of its server is really run, and Debian's Prometheus really scrapes it.

    python scripts/compose_check.py

Needs `prometheus` and `promtool` (apt-get install prometheus); where `docker compose` or `docker-compose` is, the file goes through it too.
The images of Prometheus and Grafana are not started: of Grafana the files are checked that it reads, and every query of its dashboard
is asked. Exits 1 if a file is missing, a rule or a query has an error, or the server is not seen.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "deploy/compose/compose.yaml"
_DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


def interpolated(value: Any) -> Any:
    """`${NAME:-default}` as Compose has it where NAME is not set, and `$$` as `$`, wherever it stands."""
    if isinstance(value, dict):
        return {name: interpolated(one) for name, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one) for one in value]
    return _DEFAULT.sub(lambda found: found[2], value).replace("$$", "$") if isinstance(value, str) else value


def services() -> dict[str, Any]:
    return dict(interpolated(yaml.safe_load(COMPOSE.read_text()))["services"])


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """By path in the container, the files of this repository that are mounted there. Raises `SystemExit` for one that is missing."""
    found = {}
    for line in service.get("volumes", ()):
        source, target, *_ = line.split(":")
        if source.startswith("."):
            found[target] = (COMPOSE.parent / source).resolve()
            if not found[target].exists():
                raise SystemExit(f"{COMPOSE.name} mounts {source}, which is not there")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}" if query else url, timeout=20) as answer:
        return json.load(answer)


def until(what: str, told: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if told():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{what} not within {seconds:.0f} s")


def check_file() -> str:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
            done = subprocess.run([*command, "-f", str(COMPOSE), "config", "--quiet"], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{' '.join(command)} config: {done.stderr}")
            return f"{' '.join(command)} takes the file"
    return "no docker compose here: the file was read as YAML"


def check_grafana(service: dict[str, Any], uid: str = "prometheus") -> str:
    placed = mounts(service)
    sources, folders = (
        yaml.safe_load(placed[f"/etc/grafana/provisioning/{kind}/restnet.yml"].read_text()) for kind in ("datasources", "dashboards")
    )
    sources, (folder,) = sources["datasources"], [one["options"]["path"] for one in folders["providers"]]
    if [one["type"] for one in sources] != [uid] or sources[0]["url"] != "http://prometheus:9090" or f"{folder}/restnet.json" not in placed:
        raise SystemExit("Grafana's provisioning names no Prometheus, or a folder without the dashboard")
    return "Grafana's provisioning names Prometheus and the folder with the dashboard"


def queries() -> list[str]:
    """Of the dashboard, with its variables standing for everything."""
    panels = json.loads((ROOT / "deploy/grafana/restnet.json").read_text())["panels"]
    texts = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [re.sub(r"\$__rate_interval", "1m", re.sub(r"\$(instance|model)", ".*", text)) for text in texts]


def main() -> int:
    print(check_file())
    known = services()
    print(check_grafana(known["grafana"]))
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        port, scraper = free_port(), free_port()
        environment = dict(known["restnet"]["environment"])
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RESTNET_CACHE": f"{folder}/cache", "HOME": folder}
        shell, flag, script = known["restnet"]["command"]
        line = script.replace("--port 8080", f"--port {port}").replace("0.0.0.0", "127.0.0.1")
        for target, source in mounts(known["prometheus"]).items():
            text = source.read_text().replace("restnet:8080", f"127.0.0.1:{port}").replace("scrape_interval: 5s", "scrape_interval: 1s")
            (Path(folder) / Path(target).name).write_text(text)
        subprocess.run(["promtool", "check", "config", f"{folder}/prometheus.yml"], check=True, stdout=subprocess.DEVNULL)
        try:
            log = Path(folder, "server.log")
            with log.open("w") as file:
                processes.append(subprocess.Popen([shell, flag, line], env=environment, stderr=file, stdout=file))
            storage = f"--storage.tsdb.path={folder}/tsdb"
            command = ["prometheus", f"--config.file={folder}/prometheus.yml", storage, f"--web.listen-address=127.0.0.1:{scraper}"]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            api = f"http://127.0.0.1:{scraper}/api/v1"
            until("the server is ready", lambda: processes[0].poll() is not None or ask(f"http://127.0.0.1:{port}/readyz"))
            if processes[0].poll() is not None:
                raise SystemExit(f"the server ended by itself: {log.read_text()[-1000:]}")
            for _ in range(20):
                body = json.dumps({"inputs": [[[[0.0] * 8] * 8]]}).encode()
                request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=20).close()
            until("Prometheus sees the server", lambda: ask(f"{api}/query", query='up{job="restnet"} == 1')["data"]["result"])
            version = ask(f"{api}/status/buildinfo")["data"]["version"]
            print(f"Prometheus {version} sees the server that the command of compose.yaml starts")
            until("rules are evaluated", lambda: all(rule["health"] != "unknown" for rule in rules(api)))
            wrong = [rule["name"] for rule in rules(api) if rule["health"] != "ok"]
            asked = [(text, ask(f"{api}/query", query=text)) for text in queries()]
            failed = [text for text, answer in asked if answer["status"] != "success"]
            full = sum(bool(answer["data"]["result"]) for _, answer in asked)
            firing = [rule["name"] for rule in rules(api) if rule.get("state") == "firing"]
            print(f"{len(rules(api))} rules are evaluated, firing: {', '.join(firing) or 'none'}")
            print(f"{full} of the dashboard's {len(asked)} queries have data")
            if wrong or failed or not full:
                raise SystemExit(f"rules with errors: {wrong}; queries with errors: {failed}")
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            codes = [process.wait(60) for process in processes]
    if codes[0] != 0:
        raise SystemExit(f"the server ended with {codes[0]} after SIGTERM")
    print("stopped: the server got SIGTERM through the shell of its command and ended with 0")
    return 0


def rules(api: str) -> list[dict[str, Any]]:
    return [rule for group in ask(f"{api}/rules")["data"]["groups"] for rule in group["rules"]]


if __name__ == "__main__":
    sys.exit(main())
