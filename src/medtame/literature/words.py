"""The words of the tables: the design's tasks and strategies, and how an empty field is shown."""

from __future__ import annotations

TASKS = (
    "classification",
    "segmentation",
    "object_detection",
    "anomaly_detection",
    "report_generation",
    "visual_question_answering",
    "image_text_retrieval",
    "image_synthesis",
    "super_resolution",
    "registration",
    "multi_task",
)
STRATEGIES = ("direct_use", "tuning", "fusion", "language_model", "knowledge")
LEARNING = ("none", "pretraining", "fine_tuning", "prompt_learning")
EVIDENCE = ("abstract", "repository", "title only")
MODALITIES = (
    "X-ray",
    "CT",
    "MRI",
    "ultrasound",
    "pathology",
    "microscopy",
    "dermatology",
    "fundus",
    "OCT",
    "endoscopy",
    "surgical video",
    "nuclear medicine",
    "dental",
    "gait/eye video",
    "mixed",
    "text only",
)
BODY_PARTS = (
    "abdomen",
    "blood",
    "brain",
    "breast",
    "chest",
    "colon",
    "esophagus",
    "eye",
    "gastrointestinal tract",
    "heart",
    "kidney",
    "liver",
    "lung",
    "lymph node",
    "pancreas",
    "pituitary",
    "retina",
    "skin",
    "stomach",
    "teeth",
    "thyroid",
)
REACHED = ("open_clip", "transformers", "diffusers", "own code", "API", "weights not public", "unknown")
KINDS = ("dual encoder", "fusion encoder", "generative", "segmenter", "detector", "generator", "language model", "unknown")
NOT_SAID, UNKNOWN = "not said", "unknown"
READING = (
    "The review counts five adaptation strategies and its abstract does not name them: the five used here are medtame's own reading "
    "of how its papers use a vision-language model."
)
EVIDENCE_NOTE = "`evidence` says what the labels of a paper rest on: its abstract, its code repository, or the title only."
