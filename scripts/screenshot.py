"""Pictures of the dashboard for README: serves the digits bundle, asks it for a while under several budgets, and looks at the page.

    python scripts/screenshot.py docs/dashboard.png                  # as README has it
    python scripts/screenshot.py phone.png --width 360 --dark        # any other look

Needs Chromium and playwright (the dev extra).
"""

import argparse
import io
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

BUDGETS = ("none", "800kMACs", "300kMACs", "600kMACs", "none", "1.1MMACs", "200kMACs", "800kMACs", "none", "1.2MMACs")


def digit() -> bytes:
    """A handwritten-looking seven of 8x8."""
    rows = ["........", "..#####.", ".....#..", "....#...", "...###..", "...#....", "..#.....", "..#....."]
    pixels = np.array([[255 if cell == "#" else 0 for cell in row] for row in rows], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--page", default="/")
    parser.add_argument("--seconds", type=float, default=150, help="how long it is asked (default: %(default)s)")
    parser.add_argument("--colors", type=int, default=64, help="of the picture, which keeps it small (default: %(default)s)")
    parser.add_argument("--bundle", default="", help="instead of the digits, also with options of restnet-serve")
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("screenshot.py: there is no chromium here")
    command = [
        sys.executable,
        "-c",
        "import sys; from restnet_runtime.cli import serve; sys.exit(serve())",
        *args.bundle.split(),
        "--port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(line for line in server.stdout if line.startswith("listening on")).rpartition(" ")[2].strip()
        look(url, browser, args)
    finally:
        server.terminate()
        server.wait()
    Image.open(args.out).convert("RGB").quantize(args.colors, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


def look(url: str, browser: str, args: argparse.Namespace) -> None:
    client = httpx.Client(base_url=url, trust_env=False)
    while client.get("/readyz").status_code != 200:
        time.sleep(0.1)
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, trust_env=False) as own:
            while not ended.wait(0.1):
                own.post("/predict", content=digit(), headers={"Content-Type": "image/png"})

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(
                viewport={"width": args.width, "height": args.height},
                color_scheme="dark" if args.dark else "light",
                reduced_motion="reduce",
            )
            page.on("console", lambda message: print(f"console: {message.text}", file=sys.stderr))
            page.on("pageerror", lambda error: print(f"error: {error}", file=sys.stderr))
            page.goto(url + args.page)
            if args.page == "/":
                page.wait_for_selector('#connection[data-state="live"]')
                for budget in BUDGETS:
                    client.put("/budget", json={"budget": budget})
                    page.wait_for_timeout(1000 * args.seconds / len(BUDGETS))
                page.set_input_files("#file", {"name": "seven.png", "mimeType": "image/png", "buffer": digit()})
                page.wait_for_selector("#answer:not([hidden])")
            page.wait_for_timeout(500)
            page.screenshot(path=args.out, full_page=True)
            chromium.close()
    finally:
        ended.set()
        asking.join()


if __name__ == "__main__":
    main()
