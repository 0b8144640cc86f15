"""All explorables of `rlhf_lab.classroom.explore`, for the tests with and without a browser."""

NAMES = [
    "clip",
    "gae_lambda",
    "discount",
    "leash",
    "sampling_law",
    "best_of_n",
    "agreement",
    "next_labels",
    "circle",
    "next_token",
    "power",
]
