#!/bin/sh
# The runs behind docs/results/vgg16.md, from the repository's root: training, then the comparisons, then its tables and figure.
# Every command goes on where it was stopped. One core with AMX took about 22 minutes for a CNN-F, 6 for a CNN, 25 for the features of a CNN-F.
set -eu
DATA=../shared/data/tiny-imagenet START=runs/vgg16-start/model.safetensors CONVOLUTIONS=../shared/weights/vgg16_features.safetensors
NET="--head linear --image-size 64 --amp bfloat16 --channels-last"

# A head on the frozen convolutions: shards 0 to 6 to train on, shard 7 to validate
mkdir -p runs/choice-data
for i in 0 1 2 3 4 5 6; do ln -sf "$(realpath "$DATA")/train-0000$i.tar" runs/choice-data/; done
ln -sf "$(realpath "$DATA")/train-00007.tar" runs/choice-data/val-00000.tar
python training/imagenet.py --data runs/choice-data --model cnn --weights $CONVOLUTIONS $NET --hold features.30 --steps 600 \
  --batch-size 128 --lr 0.001 --decay-every 400 --decay-factor 0.1 --workers 1 --seed 0 --output runs/vgg16-start

# The choice
CHOICE="--data runs/choice-data --weights $START $NET --hold features.9 --steps 40 --batch-size 64 --validate-every 40 --limit-validation 1000"
for lr in 0.0001 0.0003 0.001; do
  python training/imagenet.py $CHOICE --model cnn --lr $lr --output runs/choice-cnn-$lr
done
candidate() {  # target, step, weight, iterations
  python training/imagenet.py $CHOICE --model cnnf --lr 0.0001 --target $1 --step-size $2 --reconstruction $3 --iterations $4 \
    --output runs/choice-$1-$2-$4
}
candidate features.16 1 8.2e-8 2
candidate features.16 0.1 8.2e-8 2
candidate features.9 1 1.2e-7 2
candidate features.9 0.1 1.2e-7 2
candidate input 0.1 0.1 2
candidate features.9 1 1.2e-7 1

# The runs: CNN and CNN-F of three seeds, and a CNN trained as long as the CNN-F's operations take
RUN="--data $DATA --weights $START $NET --hold features.9 --batch-size 64 --lr 0.0001 --limit-validation 1000 --save-every 50 --keep 1"
for seed in 0 1 2; do
  python training/imagenet.py $RUN --model cnn --steps 150 --validate-every 50 --seed $seed --output runs/vgg16-cnn-seed$seed
  python training/imagenet.py $RUN --model cnnf --iterations 1 --target features.9 --step-size 1 --reconstruction 1.2e-7 --steps 150 \
    --validate-every 50 --seed $seed --output runs/vgg16-cnnf-seed$seed
done
python training/imagenet.py $RUN --model cnn --steps 450 --validate-every 100 --seed 0 --output runs/vgg16-long-seed0

# V4 and IT; v4-it.sh writes results/it_shapes.nc
compare() {  # name, the model's weights, the baseline's
  name=$1 model=$2 baseline=$3
  shift 3
  LAYERS=""
  for region in V4 IT; do for l in 9 16 23 30; do LAYERS="$LAYERS $region=features.$l"; done; done
  python -m cnnf_brain.compare --model vgg16 --weights $model --baseline vgg16 --baseline-weights $baseline --image-size 64 \
    --layers $LAYERS --iterations 0 1 --recordings V4=../shared/data/V4_compact_models IT=results/it_shapes.nc \
    --session 190923 190925 190927 190928 190929 201025 210224 210305 210322 210325 --batch-size 32 --output results/vgg16-$name "$@"
}
# The start's convolutions are torchvision's: its baseline rows are those of the published network
compare untrained $START $START --target features.9 --step-size 1 --match-norm --match-layers
for seed in 0 1 2; do
  TRAINED=runs/vgg16-cnnf-seed$seed/model.safetensors
  compare own-seed$seed $TRAINED $TRAINED
  compare cnn-seed$seed $TRAINED runs/vgg16-cnn-seed$seed/model.safetensors
  compare start-seed$seed $TRAINED $START
done
compare long-seed0 runs/vgg16-cnnf-seed0/model.safetensors runs/vgg16-long-seed0/model.safetensors
python docs/results/vgg16.py results runs docs/figures/vgg16-fig5.png
