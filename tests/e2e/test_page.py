"""The page in a real browser, answered by a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from clips import save_clip
from glyphrun.adapters import merge_into_bundle
from glyphrun.bundle import load_engine
from glyphrun.ensemble_bundle import load_reader
from glyphrun.ensembled import make_ensemble
from glyphrun.members import EnsembleSettings
from glyphrun.models.lora import LoraSettings
from glyphrun.prediction import Prediction
from glyphrun_serve.access import Guard
from glyphrun_serve.app import Server, ServeSettings, run
from glyphrun_serve.graph import model_card
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Failed, Unreadable
from glyphrun_serve.routes import http_app
from glyphrun_serve.tokens import KnownToken, token_hash
from local_app import EngineReader, Several, no_log, served
from lora_recognizers import adapt
from serving import save_untrained
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A recognizer behind a server."""
    folder = save_untrained(tmp_path_factory.mktemp("bundles") / "untrained")
    with run(ServeSettings(bundle=folder, precision="float32"), port=0) as server:
        yield server


def save_committee(folder: Path) -> Path:
    """An ensemble of two that read differently, the first of whom is heard more, and one that is never in time."""
    members = {
        name: save_tiny_bundle(folder.with_name(name), "parseq-nano", {**TINY, "fusion": "mean"}, seed=seed)
        for name, seed in (("early", 1), ("middle", 2), ("slow", 1))
    }
    settings = EnsembleSettings(vote="majority", weights={"early": 2.0}, deadline_ms={"slow": 1e-6})
    make_ensemble(members, folder, settings)
    return folder


@pytest.fixture
def page(tab: Page, server: Server, complaints: list[str]) -> Page:
    """The page, ready to be used; whatever it asks of anyone but its server is a complaint."""
    # What intercepts file choosers is switched on by a message that nobody waits for, and the browser lets key presses
    # overtake it; a listener from before the page is loaded has it switched on in time.
    tab.on("filechooser", lambda _: None)
    tab.on("request", lambda sent: None if _own(sent.url, server) else complaints.append(sent.url))
    tab.goto(server.url)
    expect(tab.get_by_text("untrained · v")).to_be_visible()
    return tab


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(3)
    paths = [folder / f"frame {number}'s.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return paths


def test_three_frames_give_a_reading_and_three_votes(
    page: Page, server: Server, frames: list[Path], complaints: list[str]
) -> None:
    page.set_input_files("#files", frames)
    expect(page.locator(".vote")).to_have_count(3)
    form = [("frames", (path.name, path.read_bytes())) for path in frames]
    answer = httpx.post(f"{server.url}/v1/recognize", files=form, trust_env=False).json()
    expect(page.locator("#text")).to_have_text(answer["text"] or "nothing readable")
    expect(page.locator("#characters li")).to_have_count(len(answer["characters"]))
    expect(page.locator("#n-best li")).to_have_count(3)
    for number, vote in enumerate(answer["votes"]):
        expect(page.locator(".vote .says b").nth(number)).to_have_text(vote["text"] or "unreadable")
    expect(page.locator("#timings")).to_contain_text("encode")
    expect(page.locator("#degraded")).to_be_hidden()
    assert r"""-F 'frames=@"frame 0'\''s.png"'""" in page.locator("#curl").inner_text()
    assert f"{server.url}/v1/recognize" in page.locator("#curl").inner_text()
    assert complaints == []


def test_a_server_that_asks_for_tokens_is_shown_one(tab: Page, frames: list[Path], tmp_path: Path) -> None:
    engine = load_engine(save_untrained(tmp_path / "untrained"), precision="float32")
    guard = Guard((KnownToken("test", token_hash("secret")),))
    with served(http_app(EngineReader(engine), Limits(), guard, log=no_log)) as url:
        tab.goto(url)
        expect(tab.get_by_text("a token is needed")).to_be_visible()
        tab.set_input_files("#files", frames)
        expect(tab.get_by_role("alert")).to_contain_text("bears no token")
        field = tab.get_by_label("This server asks for a token")
        field.fill("guess")
        field.press("Enter")
        expect(tab.get_by_text("another token is needed")).to_be_visible()
        field.fill("secret")
        field.press("Enter")
        expect(tab.get_by_text("untrained · v0")).to_be_visible()
        expect(tab.locator(".vote")).to_have_count(3)
        expect(field).to_be_hidden()
        expect(tab.get_by_role("alert")).to_be_hidden()
        assert '-H "Authorization: Bearer $TOKEN"' in tab.locator("#curl").inner_text()
        assert "secret" not in tab.locator("#curl").inner_text()


def test_the_page_works_by_keyboard_alone(page: Page, frames: list[Path], complaints: list[str]) -> None:
    _tab_to(page, "choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(frames[:2])
    expect(page.locator(".vote")).to_have_count(2)
    _tab_to(page, "add")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(frames[2:])
    expect(page.locator(".vote")).to_have_count(3)
    expect(page.locator("#announce")).to_contain_text("Reading: ")
    _tab_to(page, "Remove frame 2")
    page.keyboard.press("Enter")
    expect(page.locator(".vote")).to_have_count(2)
    _tab_to(page, "clear")
    page.keyboard.press("Enter")
    expect(page.locator(".frame")).to_have_count(0)
    expect(page.locator("#choose")).to_be_focused()
    assert complaints == []


def test_images_can_be_dropped(page: Page, frames: list[Path]) -> None:
    content = list(frames[0].read_bytes())
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator(".vote")).to_have_count(1)
    expect(page.locator("#curl")).to_contain_text("dropped.png")


BOXES = [
    {"tracklet": name, "frame": frame, "box": box}
    for name, frames, box in (("early", (3, 1), (0, 0, 24, 32)), ("late", (2, 15, 9), (40, 8, 32, 40)))
    for frame in frames
]


def test_a_clip_is_read_tracklet_by_tracklet(
    page: Page, server: Server, complaints: list[str], tmp_path: Path, shots: Path
) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    clip, boxes = save_clip(tmp_path / "a match's.mp4", 20), tmp_path / "boxes.json"
    boxes.write_text(json.dumps(BOXES), encoding="utf-8")
    page.set_input_files("#files", [clip, boxes])
    expect(page.locator("#announce")).to_have_text("The clip has been read: 2 tracklets")
    expect(page.locator("#tracklets-note")).to_have_text("2 read, 5 pictures of them")
    tracklets = page.get_by_role("list", name="Tracklets").get_by_role("button")
    expect(tracklets).to_have_count(2)

    command = page.locator("#curl").inner_text()
    assert r"""-F 'clip=@"a match'\''s.mp4"'""" in command
    if shutil.which("curl"):
        # What the page shows is what the command beside it prints.
        plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(f"{command} -s", shell=True, cwd=tmp_path, env=plain, capture_output=True, text=True)
        told = done.stdout
    else:
        form = {"clip": clip.read_bytes()}
        told = httpx.post(
            f"{server.url}/v1/video", files=form, data={"boxes": json.dumps(BOXES)}, trust_env=False, timeout=60
        ).text
    read = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]
    assert [found.get("tracklet") for found in read] == ["early", "late", None], told

    for place, numbers in ((0, [1, 3]), (1, [2, 9, 15])):
        if place:
            tracklets.nth(place).focus()
            page.keyboard.press("Enter")
        answer = read[place]["answer"]
        expect(page.locator("#reading-title")).to_have_text(f"Reading of tracklet {read[place]['tracklet']}")
        expect(tracklets.nth(place)).to_have_attribute("aria-pressed", "true")
        expect(tracklets.nth(1 - place)).to_have_attribute("aria-pressed", "false")
        expect(tracklets.nth(place)).to_contain_text(answer["text"] or "unreadable")
        expect(page.locator("#text")).to_have_text(answer["text"] or "nothing readable")
        expect(page.locator(".frame")).to_have_count(len(numbers))
        for card, number, vote in zip(page.locator(".frame").all(), numbers, answer["votes"], strict=True):
            expect(card).to_contain_text(f"frame {number} · weight {vote['weight']:.2f}")
            expect(card.locator("b")).to_have_text(vote["text"] or "unreadable")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=shots / "clip-dark-360.png", full_page=True)

    page.get_by_label("Where its tracklets are").fill("")
    page.keyboard.press("Tab")
    expect(page.locator("#reading-title")).to_have_text("Reading of the clip")
    expect(tracklets).to_have_count(1)
    assert "boxes" not in page.locator("#curl").inner_text()
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.screenshot(path=shots / "clip-light-1280.png", full_page=True)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#tracklets-section")).to_be_hidden()
    assert complaints == []


class FailsAtLate(EngineReader):
    """A model that one tracklet is too much for."""

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Prediction | Unreadable | Failed:
        if name == "Tracklet late":
            return Failed("RuntimeError: out of tune")
        return await super().read(frames, name=name, explain=explain)


def test_what_of_a_clip_cannot_be_read_is_explained_in_its_place(tab: Page, frames: list[Path], tmp_path: Path) -> None:
    engine = load_engine(save_untrained(tmp_path / "untrained"), precision="float32")
    boxes, half, notes = (tmp_path / name for name in ("boxes.json", "half.avi", "notes.mp4"))
    boxes.write_text(json.dumps(BOXES), encoding="utf-8")
    whole = save_clip(tmp_path / "whole.avi", 20)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    notes.write_text("no clip", encoding="utf-8")
    alert = tab.get_by_role("alert")
    with served(http_app(FailsAtLate(engine), Limits(), log=no_log)) as url:
        tab.goto(url)
        tab.set_input_files("#files", [whole, boxes])
        expect(tab.locator("#tracklets .failed")).to_contain_text("The model failed on this item alone")
        expect(tab.locator("#tracklets button")).to_have_count(1)
        expect(alert).to_be_hidden()
        tab.set_input_files("#files", [half, boxes])
        expect(alert).to_contain_text("breaks off before frame")
        expect(tab.locator("#reading-title")).to_have_text("Reading of tracklet early")
        tab.set_input_files("#files", [notes])
        expect(alert).to_contain_text("The clip cannot be opened")
        expect(tab.locator("#confidence")).to_have_text("Nothing was read.")
        tab.set_input_files("#files", [whole, frames[0]])
        expect(alert).to_contain_text("Choose images, or one clip")


def test_a_file_that_is_no_image_is_explained_in_a_sentence(page: Page, tmp_path: Path, frames: list[Path]) -> None:
    wrong = tmp_path / "notes.png"
    wrong.write_text("no image", encoding="utf-8")
    page.set_input_files("#files", [frames[0], wrong])
    expect(page.get_by_role("alert")).to_contain_text("The tracklet, frame 1 is not a readable JPEG")
    expect(page.locator("#confidence")).to_have_text("Nothing was read.")
    page.set_input_files("#files", frames[:1])
    expect(page.locator(".vote")).to_have_count(1)
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(page: Page, frames: list[Path], scheme: str, shots: Path) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    page.set_input_files("#files", frames)
    expect(page.locator(".vote")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=shots / f"frames-{scheme}-360.png", full_page=True)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 17, 23)" if scheme == "dark" else "rgb(245, 246, 250)")


def test_the_reference_lists_every_operation(page: Page, server: Server, complaints: list[str]) -> None:
    page.get_by_role("link", name="API").click()
    expect(page.locator("article h2")).to_have_count(8)
    expect(page.locator("article h2").first).to_have_text("POST/v1/recognize")
    assert complaints == []


def test_what_each_member_says_stands_beside_the_answer_of_an_ensemble(
    tab: Page, frames: list[Path], complaints: list[str], tmp_path: Path
) -> None:
    folder = save_committee(tmp_path / "committee")
    reader = EngineReader(load_reader(folder), model_card(folder))
    with served(http_app(reader, Limits(), log=no_log)) as url:
        tab.goto(url)
        expect(tab.get_by_text("committee · v")).to_be_visible()
        see_members(tab, url, frames)
    assert complaints == []


def test_a_model_is_chosen_of_several_and_the_command_asks_for_the_same(
    tab: Page, frames: list[Path], complaints: list[str], tmp_path: Path, shots: Path
) -> None:
    bundle = save_untrained(tmp_path / "untrained")
    adapter = adapt(bundle, tmp_path / "night", LoraSettings(rank=4), seed=1)
    merge_into_bundle(bundle, [adapter], tmp_path / "merged")
    base = model_card(bundle)
    night = base.model_copy(update={"name": "untrained:night-games", "provenance": {"adapter": "night-games"}})
    engines = {card.name: load_engine(home) for card, home in ((base, bundle), (night, tmp_path / "merged"))}
    readers = [EngineReader(engines[card.name], card) for card in (base, night)]
    data = [[path.read_bytes() for path in frames]]
    texts = {name: engine.read(data)[0].text for name, engine in engines.items()}
    assert texts["untrained"] != texts["untrained:night-games"]
    said = {name: text or "nothing readable" for name, text in texts.items()}
    with served(http_app(Several(*readers), Limits(), log=no_log)) as url:
        tab.goto(url)
        choice = tab.get_by_role("combobox", name="Model")
        expect(choice.locator("option")).to_have_text(["untrained · v0", "untrained:night-games · v0"])
        assert f"'{url}/v1/recognize?model=untrained'" in tab.locator("#curl").inner_text()
        tab.set_input_files("#files", frames)
        expect(tab.locator("#text")).to_have_text(said["untrained"])
        _tab_to(tab, "models")
        tab.keyboard.press("ArrowDown")
        expect(tab.locator("#text")).to_have_text(said["untrained:night-games"])
        expect(tab.get_by_text("read by untrained:night-games, version 0")).to_be_visible()
        expect(tab.locator("#announce")).to_contain_text("Reading: ")
        expect(tab.locator("#provenance")).to_contain_text("with the adapter night-games")
        assert [reader.asked for reader in readers] == [1, 1]
        command = tab.locator("#curl").inner_text()
        assert f"'{url}/v1/recognize?model=untrained:night-games'" in command
        if shutil.which("curl"):
            plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
            folder = frames[0].parent
            done = subprocess.run(f"{command} -s", shell=True, cwd=folder, env=plain, capture_output=True, text=True)
            assert json.loads(done.stdout)["model"]["name"] == "untrained:night-games"
        for width, scheme in ((360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")):
            tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            tab.set_viewport_size({"width": width, "height": 800})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            shot = shots / f"models-{scheme}-{width}.png"
            tab.screenshot(path=shot, full_page=True, animations="disabled")
        tab.set_input_files("#files", [save_clip(tmp_path / "clip.avi", 4)])
        expect(tab.locator("#reading-title")).to_have_text("Reading of the clip")
        assert [reader.asked for reader in readers][1] >= 2
        assert f"'{url}/v1/video?model=untrained:night-games'" in tab.locator("#curl").inner_text()
    assert complaints == []


def see_members(page: Page, url: str, frames: list[Path]) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    page.set_input_files("#files", frames)
    members = page.get_by_role("list", name="What each recognizer says").get_by_role("listitem")
    expect(members).to_have_count(3)
    form = [("frames", (path.name, path.read_bytes())) for path in frames]
    answer = httpx.post(f"{url}/v1/recognize", files=form, trust_env=False).json()
    early, middle, slow = answer["members"]
    assert early["text"] == answer["text"] != middle["text"]
    assert (slow["status"], slow["weight"]) == ("late", 0)
    for number, said in enumerate((early, middle)):
        expect(members.nth(number).locator("b")).to_have_text(said["text"])
        expect(members.nth(number)).to_contain_text(f"{100 * said['confidence']:.1f} %")
        expect(members.nth(number)).to_contain_text(f"voted, weight {2 - number}.00")
    for number, why in ((1, "≠ differs"), (2, "no answer in time")):
        expect(members.nth(number)).to_contain_text(why)
    expect(page.get_by_text("left out")).to_have_count(1)
    assert answer["degraded"]
    expect(page.get_by_text("degraded: not every recognizer answered")).to_be_visible()
    expect(page.get_by_text("≠ differs")).to_have_count(1)
    expect(page.locator("#announce")).to_contain_text("2 of 3 recognizers voted, 1 differs")
    expect(page.locator("#provenance")).to_contain_text("early (parseq)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("link", name="API").click()
    described = page.locator("article").first.get_by_role("row", name="members.status")
    expect(described).to_contain_text("why it is left out")


def _own(url: str, server: Server) -> bool:
    return url.startswith((server.url, "blob:", "data:"))


def _tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this id or label has the focus."""
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate("[document.activeElement.id, document.activeElement.ariaLabel]")
        if name in focused:
            return
    raise AssertionError(f"{name} cannot be reached with the Tab key")
