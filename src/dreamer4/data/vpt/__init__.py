"""Recordings of Minecraft as contractors of VPT made them (Baker et al. 2022): films, and a line of JSON for each tick.

A segment is at most five minutes of a recording: `NAME.mp4` and `NAME.jsonl` beside each other. Row t holds the state
that frame t shows and the input of tick t, of which frame t + 1 shows what it did. Nothing here changes the files.
"""

from dreamer4.data.vpt.actions import CONTROLS as CONTROLS
from dreamer4.data.vpt.actions import Mouse as Mouse
from dreamer4.data.vpt.labels import Labels as Labels
from dreamer4.data.vpt.labels import label as label
from dreamer4.data.vpt.rows import Rows as Rows
from dreamer4.data.vpt.rows import read_rows as read_rows
from dreamer4.data.vpt.segments import Segment as Segment
from dreamer4.data.vpt.segments import find_segments as find_segments
from dreamer4.data.vpt.tasks import LADDER as LADDER
from dreamer4.data.vpt.tasks import TASKS as TASKS
