"""Every Python that starts with this folder on PYTHONPATH records what its stores admit."""

import recording

recording.begin()
