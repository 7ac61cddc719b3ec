"""Run one DVC stage: `python -m pipeline.stages train`."""

import sys

from pipeline.runtime import launch

if __name__ == "__main__":
    launch.main(sys.argv[1:])
