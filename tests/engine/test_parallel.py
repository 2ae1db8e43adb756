"""Several processes for one video: the bytes of one process, and a clear end where one of them dies.

Helpers are forked from this process, which has imported everything: imports take seconds. One test starts a real one.
Runs that lose one are forked themselves, since what is left of a broken connection does not survive another fork.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from stableanimator_cli.animate.result import Animation
from stableanimator_cli.animate.run import run
from stableanimator_cli.animate.workers import with_process_count
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.diffusion.guidance import window_branches
from stableanimator_cli.diffusion.schedule import karras_sigmas
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine import parallel
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.parallel_worker import frames_of, partition, run_spawned_worker
from stableanimator_cli.errors import ConfigError, Interrupted, ModelMissing, SaError
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.scene import sample_scene
from tests.train.test_ranks import free_port
from tests.waving import waving


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Roundings may depend on the number of threads, and torchrun gives its processes one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_image(tmp_path / "person.png", np.random.default_rng(3).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    motion = waving(9, (64, 64))
    faces = np.broadcast_to(np.float32([20, 4, 44, 28]), (9, 1, 4))  # the person's own are too small to be optimised
    save_motion(tmp_path / "poses.npz", replace(motion, face_boxes=faces))
    return tmp_path


def flags_of(place: Path, model: Path, name: str, **more: Any) -> dict[str, Any]:
    """Nine frames in four windows, two branches each."""
    usual = {
        "reference": place / "person.png", "motion": place / "poses.npz", "output": place / f"{name}.mp4",
        "model": str(model), "steps": 2, "window": 4, "allow_no_face": True, "device": "cpu",
    }  # fmt: skip
    return usual | more


def animated(flags: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the video, and the record."""
    report = run(flags=flags)
    assert isinstance(report, Animation)
    return report.video.read_bytes(), json.loads(report.record.read_text())


class Forked:
    """What ``Popen`` is to rank 0, but forked."""

    def __init__(self, work: Callable[[], object], env: dict[str, str], stderr: IO[bytes]) -> None:
        self.returncode: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which no helper needs
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(stderr.fileno(), 2)
                os.environ.update(env)
                gc.freeze()  # the parent's leavings belong to threads that are not here
                work()
                code = 0
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        limit = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("helper", timeout)
            time.sleep(0.01)
        return self.returncode or 0

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def apart(work: Callable[[], Any]) -> Any:
    """What ``work`` returns or raises in a process of its own."""
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:

        def tell() -> None:
            try:
                outcome = work(), None
            except SaError as error:
                outcome = None, error
            told.write(pickle.dumps(outcome))
            told.flush()

        assert Forked(tell, {}, said).wait() == 0, (said.seek(0), said.read())
        told.seek(0)
        result, error = pickle.loads(told.read())
    if error is not None:
        raise error
    return result


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(words: list[str], *, env: dict[str, str], stderr: IO[bytes], **more: Any) -> Forked:
        return Forked(run_spawned_worker, env, stderr)

    monkeypatch.setattr(parallel, "Popen", start)


@pytest.mark.parametrize(("pairs", "world"), [(8, 3), (1, 2), (7, 2), (2, 5), (6, 6)])
def test_shares_are_even_and_in_order_and_ours_is_the_largest(pairs, world):
    shares = partition(pairs, world)
    assert [pair for share in shares for pair in share] == list(range(pairs))
    sizes = list(map(len, shares))
    assert len(shares) == world
    assert sizes[0] == max(sizes) == -(-pairs // world)
    assert max(sizes) - min(sizes) <= 1


def test_a_share_names_the_frames_that_it_looks_at():
    plan = plan_windows(9, length=4, overlap=1)
    windows = [window.frames for window, _ in window_branches(plan, (3, 3))][2:5]
    assert frames_of(plan, (3, 3), range(2, 5)).tolist() == sorted({frame for frames in windows for frame in frames})
    assert len(frames_of(plan, (3, 3), range(2, 2))) == 0


def test_two_processes_make_the_bytes_of_one_and_more_than_have_work_do_too(place, seeing_model, forked):
    """Heun with churn and face optimisation; then one window without guidance, which leaves nothing for a second."""
    rich = {"sampler": "heun", "churn": 10.0, "refine_face": "crop", "refine_iters": 1, "refine_steps": "0:2"}
    picture = np.full((96, 96, 3), 60, np.uint8)
    picture[20:70, 30:60], picture[35:45, 40:50] = (255, 0, 0), (255, 120, 0)
    write_image(place / "person.png", picture)
    one, told = animated(flags_of(place, seeing_model, "one", **rich))
    two, record = animated(flags_of(place, seeing_model, "two", gpus=2, **rich))
    assert two == one
    assert record["refined"] == told["refined"] != []
    assert record["calls"]["unet"] == told["calls"]["unet"] == 3 * 2 * len(told["windows"])
    assert record["calls"]["pose_net_frames"] < told["calls"]["pose_net_frames"]  # the others are another's
    assert (record["config"]["device"]["gpus"], told["config"]["device"]["gpus"]) == (2, 1)
    few = {"guidance": 1, "frames": "0:3"}
    lone, _ = animated(flags_of(place, seeing_model, "lone", **few))
    idle, record = animated(flags_of(place, seeing_model, "idle", gpus=3, **few))
    assert idle == lone
    assert len(record["windows"]) == 1


def test_each_process_keeps_the_deep_features_of_its_own_pairs(place, tiny_model, forked):
    """Outside of the interval of guidance rank 0 answers for all windows: what it takes there is its own."""
    levels = karras_sigmas(6).tolist()
    given = {"steps": 6, "cache_features": "4", "guidance_interval": f"{levels[4]!r}:{levels[1]!r}"}
    one, told = animated(flags_of(place, tiny_model, "one", **given))
    two, record = animated(flags_of(place, tiny_model, "two", gpus=2, **given))
    assert two == one
    calls, windows = record["calls"], len(told["windows"])
    # steps: whole, whole and two shallow with both branches, whole, shallow
    assert (calls["unet"], calls["unet_shallow"]) == (9 * windows, 5 * windows)
    assert calls["unet_shallow"] == told["calls"]["unet_shallow"]
    whole, _ = animated(flags_of(place, tiny_model, "whole", **given | {"cache_features": "off"}))
    assert whole != one


def test_windows_that_move_are_shared_too(place, tiny_model, forked):
    """Heun asks twice a step, in the same windows; deep features are of the same windows as well."""
    given = {"steps": 4, "blend": "shifted", "sampler": "heun", "cache_features": "2"}
    one, told = animated(flags_of(place, tiny_model, "one", **given))
    two, record = animated(flags_of(place, tiny_model, "two", gpus=3, **given))
    assert two == one
    assert record["calls"]["unet"] == told["calls"]["unet"] == 7 * 2 * len(told["windows"])
    assert record["calls"]["unet_shallow"] == told["calls"]["unet_shallow"] > 0
    still, _ = animated(flags_of(place, tiny_model, "still", **given | {"blend": "smooth"}))
    assert still != one


def test_a_drawn_figures_face_is_kept_alike_in_two_processes(place, forked):
    """The shipped model, which finds the figure's large face: rank 0 optimises it, the other process does not."""
    scene = sample_scene("test", 3, size=(64, 64), frames=5)
    write_image(place / "person.png", scene.reference((256, 256)).image)
    motion = scene.motion()
    save_motion(place / "poses.npz", motion)
    seen = int(np.isfinite(motion.face_boxes).all(axis=2).sum())
    more = {"size": "64x64", "window": 5, "overlap": 1, "guidance": 2, "allow_no_face": None, "preset": "standard"}
    more |= {"refine_face": "crop", "refine_iters": 2, "refine_steps": "0:2"}
    one, told = animated(flags_of(place, Path("puppet"), "one", **more))
    two, record = animated(flags_of(place, Path("puppet"), "two", gpus=2, **more))
    assert two == one
    assert record["refined"] == told["refined"]
    assert [(row["step"], row["faces"]) for row in record["refined"]] == [(0, seen), (1, seen)]
    assert seen > 3
    assert all(row["after"] > row["before"] for row in record["refined"])


def test_the_processes_of_torchrun_make_the_bytes_of_one(place, tiny_model):
    """Three of them for two pairs: one has nothing to do. torchrun says their places in the environment."""
    flags = {name: flags_of(place, tiny_model, name, frames="0:4") for name in ("one", "three")}
    one, _ = animated(flags["one"])
    where = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with (place / "said").open("w+b") as said:
        ranks = [
            Forked(lambda: run(flags=flags["three"]), where | {"RANK": rank, "LOCAL_RANK": rank}, said)
            for rank in "012"
        ]
        assert [rank.wait() for rank in ranks] == [0, 0, 0], (place / "said").read_text()
    assert (place / "three.mp4").read_bytes() == one
    assert json.loads((place / "three.json").read_text())["config"]["device"]["gpus"] == 3


def test_a_killed_process_ends_the_run_at_once_and_one_process_goes_on_to_the_same_bytes(
    place, tiny_model, monkeypatch
):
    one, _ = animated(flags_of(place, tiny_model, "one", steps=4))
    killed = place / "killed"
    evaluations: list[int] = []
    check, ask = parallel.WorkerGroup._check, parallel.WorkerGroup._send_call

    def kill(self: parallel.WorkerGroup) -> None:
        """In the third evaluation, while rank 0 is at its own work."""
        check(self)
        if len(evaluations) == 3 and not killed.exists():
            killed.touch()
            os.kill(self._children[1][0].pid, signal.SIGKILL)

    def asked(self: parallel.WorkerGroup, rank: int, *given: Any) -> Any:
        evaluations.append(rank)
        return ask(self, rank, *given)

    monkeypatch.setattr(parallel.WorkerGroup, "_check", kill)
    monkeypatch.setattr(parallel.WorkerGroup, "_send_call", asked)
    flags = flags_of(place, tiny_model, "two", steps=4)
    with pytest.raises(Interrupted, match=r"two\.mp4: rank 1 of 2 died \(signal 9\)") as caught:
        apart(lambda: run(flags=flags | {"gpus": 2}))
    assert time.time() - killed.stat().st_mtime < 20
    assert caught.value.exit_code == 130
    assert "run the same command to resume" in str(caught.value.hint)
    assert flags["output"].with_name(".two.mp4.state").exists()
    assert not flags["output"].exists()
    again, record = animated(flags)
    assert again == one
    assert record["resumed"] == 1
    assert record["calls"]["unet"] < 2 * 4 * 2 * len(record["windows"])  # the first two steps were not done again


def test_a_process_that_falls_silent_is_given_up(place, tiny_model, forked, monkeypatch):
    monkeypatch.setattr(parallel, "RESPONSE_TIMEOUT", 3.0)
    ask = parallel.WorkerGroup._send_call

    def stop(self: parallel.WorkerGroup, rank: int, *given: Any) -> Any:
        os.kill(self._children[1][0].pid, signal.SIGSTOP)
        return ask(self, rank, *given)

    monkeypatch.setattr(parallel.WorkerGroup, "_send_call", stop)
    with pytest.raises(Interrupted, match="rank 1 of 2 has not answered for 3 s") as caught:
        apart(lambda: run(flags=flags_of(place, tiny_model, "two", gpus=2)))
    assert "run the same command again" in str(caught.value.hint)  # no step was done


def test_what_a_process_cannot_do_is_said_in_its_own_words(place, tiny_model, forked, monkeypatch):
    """A machine where the others do not find the weights."""
    share = parallel.WorkerGroup.distribute

    def blind(self: parallel.WorkerGroup, engine: Any, *given: Any) -> Any:
        found = engine.model
        engine.model = replace(found, files={**found.files, "unet": place / "not here.safetensors"})
        answers = share(self, engine, *given)
        engine.model = found
        return answers

    monkeypatch.setattr(parallel.WorkerGroup, "distribute", blind)
    with pytest.raises(ModelMissing, match=r"two\.mp4: rank 1 of 2: .*not here\.safetensors") as caught:
        apart(lambda: run(flags=flags_of(place, tiny_model, "two", gpus=2)))
    assert caught.value.exit_code == 5


def test_processes_need_devices_of_their_own(monkeypatch):
    def plan(name: str) -> DevicePlan:
        return DevicePlan(device=torch.device(name), dtype=torch.float32)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parallel.check(plan("cuda"), "auto", 2, local=True)
    parallel.check(plan("cuda"), "cuda", 16, local=False)
    parallel.check(plan("cpu"), "cpu", 16, local=True)
    with pytest.raises(ConfigError, match=r"--gpus: found 3, expected 1 to 2"):
        parallel.check(plan("cuda"), "cuda", 3, local=True)
    with pytest.raises(ConfigError, match=r"--device: found 'cuda:1'"):
        parallel.check(plan("cuda:1"), "cuda:1", 2, local=True)
    with pytest.raises(ConfigError, match=r"--gpus: found 2, expected 1 on mps"):
        parallel.check(plan("mps"), "mps", 2, local=True)


def test_the_number_of_processes_is_checked_first(place, tiny_model):
    with pytest.raises(ConfigError, match=r"--gpus: found 0, expected 1 to 1024"):
        run(flags=flags_of(place, tiny_model, "out", gpus=0))


def test_torchrun_decides_how_many_processes_there_are(place, tiny_model):
    config = resolve(AnimateConfig, flags_of(place, tiny_model, "out", overlap=1))
    device = DevicePlan(device=torch.device("cpu"), dtype=torch.float32)
    three = parallel.WorkerGroup(3, torch.distributed.HashStore(), {})
    assert with_process_count(config, device, three).device.gpus == 3
    two = resolve(AnimateConfig, flags_of(place, tiny_model, "out", overlap=1, gpus=2))
    with pytest.raises(ConfigError, match=r"--gpus: found 2, expected the 3 processes that torchrun started"):
        with_process_count(two, device, three)
