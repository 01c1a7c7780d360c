"""Plain functions of arrays, with intervals."""

LOWER_IS_BETTER = frozenset(
    {
        "brier",
        "count_error",
        "ece",
        "folding_percent",
        "frechet_distance",
        "hallucination_rate",
        "hd95_mm",
        "hd95_pixels",
        "kid",
        "log_jacobian_sd",
        "median_rank_image_to_text",
        "median_rank_text_to_image",
        "omission_rate",
        "relative_target_registration_error",
        "target_registration_error",
    }
)
