"""The tasks of the suites: what each data set is, and where it may stand.

Numbers of pictures are DataComp's; for every classification task the accuracies
that MobileCLIP's authors publish for 14 models are whole multiples of
one over that number, and of no number near it. They also tell that COCO has
25,010 captions there, 5 or more a picture, and Flickr30k 5,000.

Class names and prompts are CLIP_benchmark's: its lists, or what its code makes
of those that come with the data, underscores of CIFAR-100 and RESISC45
included. Where a folder of shards holds a classnames.txt, that one counts.
Of iWildCam the names are wise-ft's, of FMoW WILDS', of GeoDE the authors';
DataComp's prompts of the first two are wise-ft's. DataComp's own lists of names
and prompts could be read for GeoDE (names) and iWildCam (prompts); those of
FMoW and Camelyon17 are of the same length in bytes as ours.

A TFDS source is named where it has the same test split and as many classes in
the same order.
"""

from aced.evaluation.suites.places import GROUPS, captions, classification
from aced.evaluation.suites.task import Task

IMAGENET = (
  classification(
    "imagenet1k",
    "ImageNet-1k",
    "ImageNet",
    50_000,
    1000,
    tfds="imagenet2012:validation",
  ),
)

# The lists of -A, -R and -O are the 200 names of their classes among ImageNet's
# 1,000, in the same order. TFDS labels them with all 1,000: other numbers.
# ObjectNet's are the 113 classes that it shares with ImageNet, by its names.
_SHIFTS = "ImageNet shifts"
SHIFTS = (
  classification(
    "imagenetv2",
    "ImageNet-V2",
    _SHIFTS,
    10_000,
    1000,
    classes="imagenet1k",
    tfds="imagenet_v2/matched-frequency:test",
  ),
  classification(
    "imagenet_sketch",
    "ImageNet-Sketch",
    _SHIFTS,
    50_889,
    1000,
    classes="imagenet1k",
    tfds="imagenet_sketch:test",
  ),
  classification(
    "imagenet_a", "ImageNet-A", _SHIFTS, 7_500, 200, shards="imagenet-a"
  ),
  classification(
    "imagenet_r", "ImageNet-R", _SHIFTS, 30_000, 200, shards="imagenet-r"
  ),
  classification("objectnet", "ObjectNet", _SHIFTS, 18_574, 113),
)

_OBJECTS = "object-centric"
OBJECTS = (
  # TFDS draws its split at random from a list of files; it has 6,084 or 6,085
  # pictures by version, and not surely these.
  classification(
    "caltech101",
    "Caltech-101",
    _OBJECTS,
    6_085,
    102,
    shards="vtab-caltech101",
    templates="caltech101",
  ),
  classification(
    "cifar10",
    "CIFAR-10",
    _OBJECTS,
    10_000,
    10,
    shards="vtab-cifar10",
    datacomp="cifar10",
    tfds="cifar10:test",
    templates="cifar",
  ),
  classification(
    "cifar100",
    "CIFAR-100",
    _OBJECTS,
    10_000,
    100,
    shards="vtab-cifar100",
    tfds="cifar100:test",
    templates="cifar",
  ),
  # TFDS has no data set of it.
  classification(
    "fgvc_aircraft",
    "FGVC-Aircraft",
    _OBJECTS,
    3_333,
    100,
    templates="fgvc_aircraft",
  ),
  # TFDS has cheesecake before cheese plate, which swaps two classes.
  classification(
    "food101", "Food-101", _OBJECTS, 25_250, 101, templates="food101"
  ),
  classification(
    "flowers102",
    "Oxford Flowers-102",
    _OBJECTS,
    6_149,
    102,
    shards="vtab-flowers",
    tfds="oxford_flowers102:test",
    templates="flowers102",
  ),
  classification(
    "pets",
    "Oxford-IIIT Pets",
    _OBJECTS,
    3_669,
    37,
    shards="vtab-pets",
    tfds="oxford_iiit_pet:test",
    templates="pets",
  ),
  classification(
    "cars",
    "Stanford Cars",
    _OBJECTS,
    8_041,
    196,
    tfds="cars196:test",
    templates="cars",
  ),
  classification(
    "stl10",
    "STL-10",
    _OBJECTS,
    8_000,
    10,
    tfds="stl10:test",
    templates="stl10",
  ),
  # A record is the box of one object, cut out, and top-1 is of its class; the
  # set of whole pictures with several labels each is `voc2007_multilabel`.
  # TFDS has the whole pictures.
  classification(
    "voc2007", "Pascal VOC 2007", _OBJECTS, 14_976, 20, templates="voc2007"
  ),
  # WILDS' test split of cameras that training has not seen. Four names stand
  # for two classes each.
  classification(
    "iwildcam",
    "iWildCam",
    _OBJECTS,
    42_791,
    182,
    shards=None,
    datacomp="wilds-iwildcam",
    templates="iwildcam",
  ),
  classification(
    "dtd",
    "DTD",
    _OBJECTS,
    1_880,
    47,
    shards="vtab-dtd",
    tfds="dtd:test",
    templates="dtd",
  ),
  classification(
    "pcam",
    "PatchCamelyon",
    _OBJECTS,
    32_768,
    2,
    shards="vtab-pcam",
    tfds="patch_camelyon:test",
    templates="pcam",
  ),
)

_SCENES = "scene-centric"
SCENES = (
  # All pictures, as it has no one test split. TFDS leaves out two of them, and
  # stores the others smaller.
  classification("sun397", "SUN397", _SCENES, 108_754, 397, templates="sun397"),
  # VTAB's test splits are the last fifths of these versions of TFDS.
  classification(
    "resisc45",
    "RESISC45",
    _SCENES,
    6_300,
    45,
    shards="vtab-resisc45",
    tfds="resisc45/3.0.0:train[25200:]",
    templates="resisc45",
  ),
  classification(
    "eurosat",
    "EuroSAT",
    _SCENES,
    5_400,
    10,
    shards="vtab-eurosat",
    tfds="eurosat/rgb/2.0.0:train[21600:]",
    templates="eurosat",
  ),
  # WILDS' test split of 2016 and after. Metadata: region (0 to 5: Asia, Europe,
  # Africa, Americas, Oceania, Other), year, class.
  classification(
    "fmow",
    "FMoW",
    _SCENES,
    22_108,
    62,
    shards=None,
    datacomp="wilds-fmow",
    options=GROUPS,
    templates="fmow",
  ),
  # Metadata: quarter of income (0 to 3), income, region. The 58 names are in no
  # source that could be read but the data's own folder.
  classification(
    "dollar_street",
    "Dollar Street",
    _SCENES,
    3_503,
    58,
    shards=None,
    datacomp="dollar_street",
    options=GROUPS,
    classes=None,
  ),
  # Metadata: region (0 to 5), country.
  classification(
    "geode",
    "GeoDE",
    _SCENES,
    12_488,
    40,
    shards=None,
    datacomp="geode",
    options=GROUPS,
  ),
)

CAPTIONS = (
  # Karpathy's test splits.
  captions("mscoco_captions", "MS-COCO", 5_000, tfds="coco_captions/2014:test"),
  captions("flickr30k", "Flickr30k", 1_000),
)

_STRUCTURE, _SIGNS = "structured", "digits and signs"
OTHERS = (
  classification(
    "imagenet_o", "ImageNet-O", _SHIFTS, 2_000, 200, shards="imagenet-o"
  ),
  classification(
    "country211",
    "Country211",
    _SCENES,
    21_100,
    211,
    templates="country211",
  ),
  # VTAB computes the labels of CLEVR and KITTI from scenes; TFDS has none.
  classification(
    "clevr_counts",
    "CLEVR counts",
    _STRUCTURE,
    15_000,
    8,
    shards="vtab-clevr_count_all",
    templates="clevr_counts",
  ),
  # The name of class 3 is empty, and its prompt is " shapes.".
  classification(
    "clevr_distance",
    "CLEVR distance",
    _STRUCTURE,
    15_000,
    6,
    shards="vtab-clevr_closest_object_distance",
    templates="clevr_distance",
  ),
  classification(
    "kitti_distance",
    "KITTI distance",
    _STRUCTURE,
    711,
    4,
    shards="vtab-kitti_closest_vehicle_distance",
    templates="name",
  ),
  classification("gtsrb", "GTSRB", _SIGNS, 12_630, 43, templates="gtsrb"),
  classification(
    "mnist",
    "MNIST",
    _SIGNS,
    10_000,
    10,
    classes="digits",
    tfds="mnist:test",
    templates="digits",
  ),
  # DataComp takes MNIST's names and prompt; CLIP_benchmark's folder has others.
  classification(
    "svhn",
    "SVHN",
    _SIGNS,
    26_032,
    10,
    shards=None,
    datacomp="vtab-svhn",
    classes="digits",
    tfds="svhn_cropped:test",
    templates="digits",
  ),
  classification(
    "rendered_sst2",
    "Rendered SST2",
    _SIGNS,
    1_821,
    2,
    shards="renderedsst2",
    templates="rendered_sst2",
  ),
  # WILDS' test split, of a hospital that training has not seen.
  classification(
    "camelyon17",
    "Camelyon17",
    "medical",
    85_054,
    2,
    shards=None,
    datacomp="wilds-camelyon17",
    classes="pcam",
    templates="pcam",
  ),
)

# The candidates of 3,563 cues: 1,320 have 5, 1,389 have 6, 426 have 10 and 428
# have 12. DataComp calls that its size, and scores the 854 of 10 and 12.
WINOGAVIL = Task(
  name="winogavil",
  title="WinoGAViL",
  group="retrieval",
  kind="association",
  sources=("jsonl:{data_dir}/winogavil/test.jsonl",),
  records=24_330,
  metric="jaccard_hard",
  get=(
    "The test split is at https://huggingface.co/datasets/nlphuji/winogavil."
    " Write {data_dir}/winogavil/test.jsonl from it, a line a candidate:"
    ' {"image": PATH, "text": CUE, "instance": ID, "associated": true or'
    " false}."
  ),
)
