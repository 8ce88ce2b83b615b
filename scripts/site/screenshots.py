"""Pictures of the site that `make docs` builds, as a browser shows it: wide and light, narrow and dark.

    python scripts/site/screenshots.py build/site-pictures                    # every page of the navigation, to be looked at
    python scripts/site/screenshots.py --sheet docs/site.png                  # the one picture in README: three pages, one on a phone

Fails where a page is wider than its window, or asks for anything that is not beside it. Needs Chromium and playwright (the dev extra).
"""

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).resolve().parents[2] / "build/site"
SHEET = (
    ("tutorial.html", 1000, 760, "light"),
    ("reference/commands.html", 1000, 760, "light"),
    ("how-to/camera.html", 380, 760, "dark"),
)
"""Page, width, height, scheme."""
GAP, COLORS = 16, 96


def shoot(browser: Browser, site: Path, page_name: str, width: int, height: int, scheme: str, out: Path, whole: bool = False) -> list[str]:
    """One picture. Returns what is wrong with the page."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light")
    page.on("pageerror", lambda error: wrong.append(f"{page_name}: {error}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(f"{page_name} asks for {request.url}")
        ),
    )
    page.goto((site / page_name).as_uri())
    page.wait_for_timeout(300)
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if over > 0:
        wrong.append(f"{page_name} is {over} pixels wider than a window of {width}")
    page.screenshot(path=out, full_page=whole)
    page.close()
    return wrong


def sheet(pictures: list[Path], out: Path) -> None:
    """Pictures side by side."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    whole = Image.new("RGB", (sum(one.width + GAP for one in images) - GAP, max(one.height for one in images)), "#bbbbbb")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + GAP
    whole.quantize(COLORS, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=SITE.parent / "site-pictures")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--site", type=Path, default=SITE, help="what make docs built (default: %(default)s)")
    parser.add_argument("--pages", nargs="+", help="of the site, such as tutorial.html (default: all)")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or not (args.site / "index.html").exists():
        sys.exit("screenshots.py: needs chromium, and build/site from make docs")
    args.folder.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--allow-file-access-from-files"])
        if args.sheet:
            pictures = [args.folder / f"sheet-{number}.png" for number in range(len(SHEET))]
            for shot, picture in zip(SHEET, pictures, strict=True):
                wrong += shoot(browser, args.site, *shot, picture)
            sheet(pictures, args.sheet)
            print(f"{args.sheet}: {args.sheet.stat().st_size / 1e3:.0f} kB")
        else:
            pages = args.pages or sorted(str(page.relative_to(args.site)) for page in args.site.rglob("*.html") if page.name != "404.html")
            for page in pages:
                name = page.removesuffix(".html").replace("/", "-")
                wrong += shoot(browser, args.site, page, 1280, 900, "light", args.folder / f"{name}.png")
                wrong += shoot(browser, args.site, page, 360, 740, "dark", args.folder / f"{name}-phone.png")
            print(f"{len(pages)} pages, light and wide, dark and narrow: {args.folder}")
        browser.close()
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
