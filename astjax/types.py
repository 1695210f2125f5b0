"""Names for the data that flows, and the legend of the axis letters.

B batch, V views, S samples, T frames, F mel bins, P prefix tokens (cls, dist),
N patches = F' x T' (position grid), D width, H heads, C classes. A shape is
written with these letters wherever an array is born.

A batch is a plain dict of arrays:

  audio        [B, S]         int16 from the host, float32 after `to_float`
  num_samples  [B]            int32, real samples before padding
  fbank        [B, T, F]      float32 log-mel filter banks
  audio, fbank [B, V, S], [B, V, T, F]  of several views of a clip (ASiT)
  audio_local  [B, V', S']    likewise, of shorter views
  fbank_local  [B, V', T', F]  their log-mels
  patches      [B, F', T', ph*pw]  float32, instead of fbank, by `patchify`
  label        [B, C]         float32 multi-hot, possibly soft
  valid        [B]            bool, False on rows that only fill a batch
  id           [B]            int32 row of the source
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Array = Any
Batch = dict[str, Array]
Example = dict[str, Array]
Params = Mapping[str, Any]
TaskState = Any
Metrics = dict[str, Array]
