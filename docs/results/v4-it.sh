#!/bin/sh
# The runs behind docs/results/v4-it.md, from the repository's root: AlexNet's training, then every comparison, then its tables.
# VGG-16 is trained by docs/results/vgg16.sh. Every command goes on where it was stopped.
set -eu
DATA=../shared/data/tiny-imagenet
START=runs/alexnet-start/model.safetensors

# AlexNet: a head on ImageNet's convolutions, then a CNN and a CNN-F from that start. One seed, with the small head of VGG-16;
# docs/results/imagenet.md has three seeds of the whole AlexNet
NET="--arch alexnet --head linear --image-size 128 --channels-last --workers 1"
mkdir -p runs/choice-data
for i in 0 1 2 3 4 5 6; do ln -sf "$(realpath "$DATA")/train-0000$i.tar" runs/choice-data/; done
ln -sf "$(realpath "$DATA")/train-00007.tar" runs/choice-data/val-00000.tar
python training/imagenet.py --data runs/choice-data --model cnn --weights ../shared/weights/alexnet_features.safetensors $NET \
  --hold features.12 --steps 300 --batch-size 128 --lr 0.03 --decay-every 200 --decay-factor 0.1 --seed 0 --output runs/alexnet-start
RUN="--data $DATA $NET --weights $START --steps 320 --batch-size 64 --lr 0.005 --limit-validation 1000 --validate-every 160"
python training/imagenet.py $RUN --model cnn --seed 0 --output runs/alexnet-cnn-seed0
python training/imagenet.py $RUN --model cnnf --iterations 2 --target features.2 --step-size 1 --reconstruction 0.1 \
  --seed 0 --output runs/alexnet-cnnf-seed0

# V4: all ten sessions of two animals. IT: 119 neurons and 64 shapes, written to a file first; 92 objects
mkdir -p results
python - <<'END'
from pathlib import Path

import numpy as np
import pandas as pd

from cnnf_brain.recordings import write_assembly

folder = Path("../shared/data/IT_shapes")
images, sites = pd.read_csv(folder / "stimuli.csv"), pd.read_csv(folder / "sites.csv")
responses = np.load(folder / "responses.npy").T  # (images, sites), as write_assembly takes them
names = [f"monkey{monkey}-cell{cell}" for monkey, cell in zip(sites["monkey"], sites["cell"])]
subjects = [f"monkey{monkey}" for monkey in sites["monkey"]]
write_assembly("results/it_shapes.nc", responses, [folder / image for image in images["image"]], region="IT",
               image_ids=list(images["stimulus_id"]), site_ids=names, subjects=subjects)
END
V4="V4=../shared/data/V4_compact_models"
SESSIONS="190923 190925 190927 190928 190929 201025 210224 210305 210322 210325"
compare() {  # name, what compare takes for the two networks
  name=$1
  shift
  python -m cnnf_brain.compare "$@" --recordings $V4 IT=results/it_shapes.nc --session $SESSIONS --metric pls ridge rsa cka \
    --layers $V4_LAYERS $IT_LAYERS --output results/v4-it-$name
  python -m cnnf_brain.compare "$@" --recordings $V4 --session 210325 --metric cosine_cov --layers $V4_LAYERS \
    --output results/v4-it-$name-whitened
  for who in monkey human; do
    python -m cnnf_brain.compare "$@" --recordings IT=../shared/data/IT_92/${who}_IT_rdm.npy --metric rsa cka --layers $IT_LAYERS \
      --output results/v4-it-$name-$who
  done
}

V4_LAYERS="V4=features.8" IT_LAYERS="IT=features.8 IT=features.12"
A="--image-size 128 --iterations 0 1 2 --batch-size 32 --model alexnet --baseline alexnet"
compare alexnet-untrained $A --weights $START --baseline-weights $START --target features.2 --step-size 1 --match-norm --match-layers
compare alexnet-seed0 $A --weights runs/alexnet-cnnf-seed0/model.safetensors \
  --baseline-weights runs/alexnet-cnn-seed0/model.safetensors
V4_LAYERS="V4=features.16" IT_LAYERS="IT=features.23 IT=features.30" START=runs/vgg16-start/model.safetensors
V="--image-size 64 --iterations 0 1 --batch-size 32 --model vgg16 --baseline vgg16"
compare vgg16-untrained $V --weights $START --baseline-weights $START --target features.9 --step-size 1 --match-norm --match-layers
compare vgg16-seed0 $V --weights runs/vgg16-cnnf-seed0/model.safetensors --baseline-weights runs/vgg16-cnn-seed0/model.safetensors
python docs/results/v4-it.py results unique
