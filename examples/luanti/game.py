"""Luanti on a screen of its own, played by keys and mouse, one frame at a time."""

import ctypes
import json
import os
import select
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


HERE = Path(__file__).parent
WIDTH, HEIGHT = 640, 360
DEGREES = 0.15  # that a pixel of the mouse turns the view
EYE = 1.47  # height of the eyes above the feet

_CONF = """
fps_max = 1000
fps_max_unfocused = 1000
screen_w = 640
screen_h = 360
dedicated_server_step = 0.04
mouse_sensitivity = 0.15
viewing_range = {far}
enable_shaders = false
leaves_style = opaque
enable_clouds = false
enable_particles = false
enable_sound = false
gui_scaling = 2
font_size = 8
enable_damage = false
enable_client_modding = true
csm_restriction_flags = 0
chat_log_level =
mg_name = flat
mgflat_spflags = hills,nolakes,nocaverns
mg_flags = nocaves,nodungeons,decorations,light
fixed_map_seed = {seed}
time_speed = 24
keymap_inventory = KEY_KEY_E
keymap_aux1 = KEY_LCONTROL
keymap_sneak = KEY_LSHIFT
"""
# X's names of the keys that a player may press, by those of VPT.
KEYS = {
    **{key: key for key in "wasdeq123456789"},
    "space": "space",
    "left.shift": "Shift_L",
    "left.control": "Control_L",
}
_SHADES = {(198, 198, 198): "inventory", (197, 198, 198): "table", (196, 198, 198): "furnace"}


@dataclass
class Input:
    """What is held down in a tick, and how far the mouse moves in pixels of the screen."""

    keys: set[str] = field(default_factory=set)
    buttons: set[int] = field(default_factory=set)  # 0 attack, 1 use
    dx: int = 0
    dy: int = 0


class Game:
    """A new world, and what is known of the frame that it shows.

    Attributes:
        frame: uint8[360, 640, 3].
        yaw: degrees, to the left, not wrapped.
        pitch: degrees, downwards.
        pos: of the feet.
        slot: of the hotbar in hand, 0 to 8.
        window: that is open: inventory, table or furnace; None without one.
        cursor: of the mouse on the screen, pixels.
        things: name and amount by slot, from 0.
        stats: counters of what was done.
    """

    def __init__(self, seed: int, display: int, far: int = 30):
        self._folder = tempfile.TemporaryDirectory(prefix="luanti-")
        root = Path(self._folder.name)
        mods, eye = root / "world/worldmods/recorder", root / "home/.minetest/clientmods/eye"
        shutil.copytree(HERE / "recorder", mods)
        shutil.copytree(HERE / "eye", eye)
        (eye.parent / "mods.conf").write_text("load_mod_eye = true\n")
        (root / "world/world.mt").write_text(
            "gameid = minetest_game\nbackend = sqlite3\nplayer_backend = sqlite3\nauth_backend = sqlite3\n"
            "mod_storage_backend = sqlite3\nload_mod_recorder = true\n"
        )
        (root / "conf").write_text(_CONF.format(seed=seed, far=far))
        self._wanted, self._asked = root / "world/wanted", 0
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", root / "step.so", HERE / "step.c", "-ldl"], check=True)  # noqa: S603, S607
        screen = [
            "Xvfb",
            f":{display}",
            "-screen",
            "0",
            f"{WIDTH}x{HEIGHT}x24",
            "-fbdir",
            root,
            "-nocursor",
            "-terminate",
        ]
        shown, there = os.pipe()
        self._xvfb = subprocess.Popen(  # noqa: S603
            [*screen, "-displayfd", str(there)],
            pass_fds=(there,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        if not os.read(shown, 9):
            raise SystemExit(f"Xvfb does not begin on display :{display}. Choose another by --display.")
        told, tell = os.pipe()
        wait, self._go = os.pipe()
        binary = shutil.which("minetest") or shutil.which("luanti") or "/usr/games/minetest"
        surroundings = {"DISPLAY": f":{display}", "HOME": str(root / "home"), "LIBGL_ALWAYS_SOFTWARE": "1"}
        surroundings |= {"LP_NUM_THREADS": "0", "LD_PRELOAD": str(root / "step.so")}
        surroundings |= {"STEP_TOLD": str(tell), "STEP_GO": str(wait)}
        self._game = subprocess.Popen(  # noqa: S603
            [binary, "--go", "--world", root / "world", "--config", root / "conf"],
            env=os.environ | surroundings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(tell, wait),
        )
        os.close(tell)
        os.close(wait)
        self._told, self._text, self._began = told, b"", False
        assert self._game.stderr
        os.set_blocking(self._game.stderr.fileno(), False)
        self._x11, self._test = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXtst.so.6")
        self._x11.XOpenDisplay.restype = self._x11.XDefaultRootWindow.restype = ctypes.c_void_p
        self._screen = ctypes.c_void_p(self._x11.XOpenDisplay(f":{display}".encode()))
        raw = np.memmap(root / "Xvfb_screen0", mode="r")
        head = raw[:100].view(">u4")
        pixels = raw[int(head[0]) + 12 * int(head[19]) :][: WIDTH * HEIGHT * 4]
        self._pixels = pixels.reshape(HEIGHT, WIDTH, 4)[..., 2::-1]
        self._held = Input()
        self.yaw = self.pitch = 0.0
        self.pos, self.slot, self.cursor = np.zeros(3), 0, (WIDTH // 2, HEIGHT // 2)
        self.state: dict = {}
        self.window: str | None = None
        while not self.state.get("ready"):
            self.step(Input())
        self._focus()
        for _ in range(40):  # until the land is drawn
            self.step(Input())

    def step(self, given: Input) -> None:
        """Carries out the input of a tick and waits for the next frame."""
        self._press(given)
        if self._game.poll() is not None or not self._advance():
            raise RuntimeError(f"The game ended: {self._text[-500:].decode(errors='replace')}")

    def want(self, reach: int, *names: str) -> None:
        """Asks for the nearest node of some kinds."""
        self._asked += 1
        words = [str(self._asked), str(reach), *(f"default:{name}" for name in names), "end"]
        self._wanted.write_text(",".join(words))

    @property
    def target(self) -> tuple[int, int, int] | None:
        """Where the node is that was asked for; None where there is none, or until it was looked for."""
        found = self.state.get("target")
        if not found or self.state.get("asked") != self._asked:
            return None
        return int(found[0]), int(found[1]), int(found[2])

    @property
    def things(self) -> dict[int, tuple[str, int]]:  # noqa: D102
        return {int(slot) - 1: (name, int(amount)) for slot, (name, amount) in (self.state.get("things") or {}).items()}

    @property
    def stats(self) -> dict[str, int]:  # noqa: D102
        return {name: int(count) for name, count in (self.state.get("stats") or {}).items()}

    def solid(self, x: int, y: int, z: int) -> bool:
        """Whether there is something to walk on or against, beside the feet; x and z from -1, y from -2 to 3."""
        return self.state["solid"][(y + 2) * 9 + (x + 1) * 3 + z + 1] == "1"

    def close(self) -> None:
        """Ends the game and its screen."""
        for process in (self._game, self._xvfb):
            process.kill()
            process.wait()
        for end in (self._go, self._told):
            os.close(end)
        self._folder.cleanup()

    def _focus(self) -> None:
        root, parent, count = ctypes.c_ulong(), ctypes.c_ulong(), ctypes.c_uint()
        children = ctypes.POINTER(ctypes.c_ulong)()
        whole = ctypes.c_void_p(self._x11.XDefaultRootWindow(self._screen))
        places = [ctypes.byref(x) for x in (root, parent, children, count)]
        self._x11.XQueryTree(self._screen, whole, *places)
        self._x11.XSetInputFocus(self._screen, ctypes.c_ulong(children[count.value - 1]), 1, ctypes.c_ulong(0))
        self._x11.XSync(self._screen, 0)

    def _press(self, given: Input) -> None:
        held, screen, test = self._held, self._screen, self._test
        for key in held.keys ^ given.keys:
            symbol = ctypes.c_ulong(self._x11.XStringToKeysym(KEYS[key].encode()))
            test.XTestFakeKeyEvent(screen, self._x11.XKeysymToKeycode(screen, symbol), int(key in given.keys), 0)
        for button in held.buttons ^ given.buttons:
            test.XTestFakeButtonEvent(screen, (1, 3)[button], int(button in given.buttons), 0)
        if given.dx or given.dy:
            test.XTestFakeRelativeMotionEvent(screen, given.dx, given.dy, 0)
        self._x11.XSync(screen, 0)
        self._held = given
        if self.window:
            x, y = self.cursor
            self.cursor = (min(max(x + given.dx, 0), WIDTH - 1), min(max(y + given.dy, 0), HEIGHT - 1))

    def _advance(self) -> bool:
        if self._began:
            os.write(self._go, b"x")
        self._began = True
        if not select.select([self._told], [], [], 120)[0] or not os.read(self._told, 1):
            return False
        self.frame = self._pixels.copy()
        assert self._game.stderr
        while part := self._game.stderr.read():
            self._text += part
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            _, _, said = line.partition(b"]: ")
            if said.startswith(b"EYE "):
                yaw, pitch, *pos, slot = map(float, said.split()[1:])
                self.yaw += (yaw - 90 - self.yaw + 180) % 360 - 180
                self.pitch, self.pos, self.slot = -pitch, np.array(pos), int(slot)
            elif said.startswith(b"STATE "):
                self.state = json.loads(said[6:])
        window = _SHADES.get(tuple(self.frame[14, 98].tolist())) if _flat(self.frame) else None
        if window is None or self.window is None:
            self.cursor = (WIDTH // 2, HEIGHT // 2)
        self.window = window
        return True


def _flat(frame: np.ndarray) -> bool:
    """Whether the corners of a window are of one colour."""
    return len({tuple(frame[y, x].tolist()) for y, x in ((14, 98), (14, 542), (348, 98), (348, 542))}) == 1
