"""A plugin of pytest, which run.py loads: several processes take the slowest files first, or one would work on alone.

xdist itself goes by the number of tests in a file. `pytest --durations=0` says how long each test takes.
"""

SLOWEST_FIRST = (
    "tests/test_demo.py",
    "tests/benchmarks/test_probes.py",
    "tests/benchmarks/test_study_probes.py",
    "tests/recipes/test_rlhf.py",
    "tests/classroom/test_widgets_browser.py",
    "tests/benchmarks/test_bench.py",
    "tests/classroom/test_course.py",
    "tests/classroom/test_clinic.py",
    "tests/worlds/test_town.py",
    "tests/test_readme.py",
    "tests/experience/test_rollouts.py",
    "notebooks/00_the_whole_story.ipynb",
    "notebooks/10_rlhf.ipynb",
    "notebooks/06_bug_clinic.ipynb",
    "notebooks/03_values.ipynb",
    "notebooks/05_ppo.ipynb",
)


def pytest_collection_modifyitems(items):
    place = {name: position for position, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))
