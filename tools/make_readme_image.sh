#!/usr/bin/env bash
# Make outputs/quickstart_predictions.jpg, the image in the README: the sheet of predictions in a report of the
# quickstart. It trains the quickstart first unless a run folder is given that has a report.
#
#   tools/make_readme_image.sh [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-outputs/quickstart}
[ -f "$run/report/predictions.png" ] || python tools/train.py -c configs/quickstart.yml --set "output_dir=$run"
python -c "import sys
from PIL import Image
Image.open(sys.argv[1]).convert('RGB').save('outputs/quickstart_predictions.jpg', quality=85, optimize=True)" \
    "$run/report/predictions.png"
