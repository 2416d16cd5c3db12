"""FLARE's command line, making certificates that were valid two days ago already: `python -m`, its own words.

FLARE 2.9 makes them valid from this second on, so a hospital whose clock is a minute slow could not join.
"""

import datetime
from typing import Any

from nvflare.lighter import utils

EARLIER = datetime.timedelta(days=2)

_generate = utils.generate_cert


def _generate_backdated(*words: Any, **options: Any) -> Any:
    now = options.get("not_valid_before") or datetime.datetime.now(datetime.UTC)
    return _generate(*words, **options | {"not_valid_before": now - EARLIER})


if __name__ == "__main__":
    # Before the modules that import it by name.
    utils.generate_cert = _generate_backdated
    from nvflare.cli import main

    main()
