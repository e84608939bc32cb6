"What all tests share: few threads, no network, no window, and no results left in the clone."

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "VLM_COUNTING_RESULTS" not in os.environ:
    _results = tempfile.TemporaryDirectory(prefix="vlm-counting-results-")
    os.environ["VLM_COUNTING_RESULTS"] = _results.name
