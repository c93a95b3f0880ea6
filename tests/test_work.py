"""What the work on a batch rests on: leases of devices, what a device keeps, the watch, words for failures."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from servers import picture

from nst_tasks import devices, images, manifest, presets, weights, work
from nst_tasks.batching import Job
from nst_tasks.core import backbones
from nst_tasks.devices import STATISTICS_KEPT, Device
from nst_tasks.errors import Interrupted
from nst_tasks.images import Picture
from nst_tasks.progress import Watch, current, watch
from nst_tasks.source import Source


def test_a_device_is_leased_to_one_at_a_time() -> None:
    inside: list[str] = []
    with devices.lease(Watch()) as device:
        assert device.name == devices.names()[0]

        def other() -> None:
            with devices.lease(Watch()):
                inside.append("other")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.5)
        assert inside == []
    thread.join(10)
    assert inside == ["other"]


def test_a_lease_is_given_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), devices.lease(Watch()):
        raise ZeroDivisionError
    with devices.lease(Watch()) as device:
        assert device


def test_waiting_for_a_device_ends_when_the_run_is_asked_to_stop() -> None:
    stopping = Watch()
    stopping.stop.set()
    with devices.lease(Watch()), pytest.raises(Interrupted), devices.lease(stopping):
        pass


def test_a_device_makes_each_thing_once_and_forgets_the_oldest_statistics() -> None:
    device, made = Device("/CPU:0"), []
    for key in [*range(STATISTICS_KEPT), 0, STATISTICS_KEPT, 0, 1]:
        device.style(key, lambda key=key: made.append(key) or key)
    # 0 was used again and so is kept; 1 was the oldest when one more came, and is made anew
    assert made == [*range(STATISTICS_KEPT), STATISTICS_KEPT, 1]
    assert len(device.statistics) == STATISTICS_KEPT
    loaded = [device.backbone("sha", lambda: backbones.build("tiny", weights.load("tiny", None))) for _ in range(2)]
    assert loaded[0] is loaded[1]


def loaded_pair(content: str, style: str, **fields: object) -> work.Loaded:
    """A job at 48 x 64 with decoded pictures."""
    pictures = {name: images.decode(picture(name), 10**6) for name in (content, style)}
    sources = {name: Source(f"/{name}.png", name, "1", 72, 96) for name in (content, style)}
    job = Job(
        id=f"{content}_{style}", row=2, content=sources[content], styles=(sources[style],), style_weights=(1.0,),
        recipe=presets.PAINTERLY, seed=0, keep_color=False, upscale=False, format="png", height=48, width=64,
        weights_sha256="w",
    )  # fmt: skip
    job = job.__class__(**{**vars(job), **fields})
    return work.Loaded(job, images.resize(pictures[content], 48, 64), (pictures[style],))


def test_a_style_at_one_size_is_measured_once_for_all_pairs_that_share_it() -> None:
    device = Device("/CPU:0")
    backbone = device.backbone("w", lambda: backbones.build("tiny", weights.load("tiny", None)))
    first = work.styles(loaded_pair("cat", "oil"), 64, backbone, device)
    again = work.styles(loaded_pair("dog", "oil"), 64, backbone, device)
    assert first[0] is again[0]
    assert len(device.statistics) == 1
    work.styles(loaded_pair("cat", "oil"), 48, backbone, device)  # another size
    work.styles(loaded_pair("cat", "ink"), 64, backbone, device)  # another style
    assert len(device.statistics) == 3
    # with kept colors the style is matched to each content's luminance: nothing to share
    matched = [work.styles(loaded_pair(content, "oil", keep_color=True), 64, backbone, device) for content in ("cat", "dog")]
    assert matched[0][0] is not matched[1][0]


def test_a_style_is_seen_on_white() -> None:
    device = Device("/CPU:0")
    backbone = device.backbone("w", lambda: backbones.build("tiny", weights.load("tiny", None)))
    ready = loaded_pair("cat", "oil")
    gone = Picture(ready.styles[0].rgb, np.zeros(ready.styles[0].rgb.shape[:2], np.float32))
    white = Picture(np.ones_like(ready.styles[0].rgb), None)
    clear = work.styles(work.Loaded(ready.job, ready.content, (gone,)), 64, backbone, Device("/CPU:0"))
    plain = work.styles(work.Loaded(ready.job, ready.content, (white,)), 64, backbone, Device("/CPU:0"))
    for layer, statistics in plain[0].items():
        for name, value in statistics.items():
            np.testing.assert_allclose(clear[0][layer][name], value, atol=1e-5)


def test_a_watch_counts_from_many_threads_and_is_silent_where_nobody_watches() -> None:
    told: list[int] = []
    counting = Watch(changed=lambda now: told.append(now.steps_done))
    threads = [threading.Thread(target=lambda: [counting.add(steps_done=1) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counting.steps_done == 1600
    assert len(told) == 1600
    token = current.set(counting)
    assert watch() is counting
    current.reset(token)
    assert watch() is not counting


def test_an_unexpected_error_is_told_in_a_line_without_secrets() -> None:
    failed = work.failure("a", 2, RuntimeError("GET https://user:word@host/x?Signature=abc\nmore"), "run")
    assert failed.error == "unexpected RuntimeError: GET https://host/x"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/in/cat.png", "cat"),
        ("s3://b/my.photo.jpg", "my"),
        ("/in/plain", "plain"),
        ("https://h/a.jpg?Signature=x.y/z", "a"),
        ("/in/.hidden", ".hidden"),
    ],
)
def test_a_pictures_name_is_its_files_without_ending_and_without_secrets(uri: str, name: str) -> None:
    assert Source(uri, "", "", 1, 1).name == name


def test_a_hundred_thousand_rejected_rows_are_told_in_one_pass() -> None:
    """Each row's reasons are looked up, not searched for: the square of 100,000 would not end."""
    rows = "content,style,size\n" + "a.png,b.png,9\n" * 100_000
    parsed = manifest.parse(rows.encode(), "/in")
    why = manifest.reasons(parsed)
    assert len(why) == 100_000
    assert all("9 is below the smallest size" in "; ".join(why[row.row]) for row in parsed.rejected)
