"""Numbers of docs/results/agreement.md on the 92 objects: monkey and human IT, and what the choice of a distance changes.

python docs/results/agreement.py    # from the repository's root; half a minute
"""

import numpy as np

import cnnf_brain as cb
from cnnf_brain.activations import features
from cnnf_brain.images import batches
from cnnf_brain.predictivity.similarity import bootstrap_over_images, dissimilarities, similarity
from cnnf_brain.types import LayerAt

monkey, human = (cb.load_recordings(f"../shared/data/IT_92/{who}_IT_rdm.npy", region="IT") for who in ("monkey", "human"))
m, h = monkey.rdms[0], human.rdms[0]
pairs = np.triu_indices(len(m), 1)
error = bootstrap_over_images([m], h).std(ddof=1)
print(
    f"monkey and human IT: Pearson {np.corrcoef(m[pairs], h[pairs])[0, 1]:.3f}, Spearman {similarity(m, h):.3f} +- {error:.3f}"
)

network = cb.load_network("alexnet", "../shared/weights/alexnet_features.safetensors")
layers = [LayerAt.parse(f"features.{i}@0") for i in (2, 5, 7, 9, 12)]
found = [features(network, batch, layers) for batch in batches(monkey.images, network.preprocessing, 8)]
print("layer; monkey, then human IT: cosine distance as rsa takes it, correlation distance, that of centred features")
for at in layers:
    x = np.concatenate([one[at] for one in found]).reshape(len(m), -1).astype(float)
    rdms = [dissimilarities(x @ x.T, "cosine"), 1 - np.corrcoef(x), 1 - np.corrcoef(x - x.mean(axis=0))]
    for rdm in rdms:
        np.fill_diagonal(rdm, 0.0)
    print(at, *(f"{similarity((rdm + rdm.T) / 2, one):.3f}" for one in (m, h) for rdm in rdms))
