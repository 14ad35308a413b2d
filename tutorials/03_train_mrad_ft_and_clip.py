"""Train MRAD-FT and MRAD-CLIP on labeled images, compare them on a held-out class, save them and use one.

Usage:
    python tutorials/03_train_mrad_ft_and_clip.py [OUTPUT]
"""

import sys
from pathlib import Path

import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler

import mrad_med

output = Path(sys.argv[1] if len(sys.argv) > 1 else "tutorial_training")
image_size = 252  # pixels; the bundles use 518, which is slower and gives finer maps
surfaces = ["fabric", "leather", "tiles", "wood"]
folder = mrad_med.write_surface_dataset(output / "surfaces", surfaces=surfaces, count=5)

cases = mrad_med.load_training_set(folder)  # VisA as downloaded, or folders of classes
held_out = mrad_med.choose_held_out(cases, 1, seed=0)
clip = mrad_med.load_clip("embedded")
cache = mrad_med.FeatureCache(clip, output / "features", image_size=image_size)
features = cache.fill(cases, progress=False)  # encodes each image once; a second run reads all features from disk
training, validation = features.split(held_out)
bank = mrad_med.build_memory_bank(clip, mrad_med.feature_loader(training), sources=training.sources, progress=False)
bank.save(output / "memory_bank.safetensors")
training = mrad_med.select_trainable(training)


def evaluator_of(network):
    """Return an evaluator that measures a network on the held-out class."""
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=mrad_med.feature_loader(validation),
        network=network,
        prepare_batch=mrad_med.PrepareFeatures(clip.image_encoder),
        inferer=mrad_med.FeatureInferer(),
        key_val_metric={"pixel_auroc": mrad_med.PixelMetricHandler("auroc")},
        additional_metrics={"image_auroc": mrad_med.ImageMetricHandler("auroc")},
        decollate=False,
    )


def train(name, trainer_class, network, **keywords):
    """Train the head of a network, keep the weights that are best in validation, and save them with a card."""
    weights = [weight for weight in network.head.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=4e-4, betas=(0.5, 0.999))
    evaluator = evaluator_of(network)
    checkpoint = mrad_med.TrainingCheckpoint(
        output / "training" / name, network.head, optimizer, evaluator=evaluator, identity={"bank": bank.sha256}
    )
    trainer_class(
        device="cpu",
        max_epochs=5,
        train_data_loader=mrad_med.feature_loader(training, batch_size=4, shuffle=True, seed=0),
        network=network.head,
        optimizer=optimizer,
        train_handlers=[ValidationHandler(1, evaluator), checkpoint],
        **keywords,
    ).run()
    how = {"image_size": image_size, "max_epochs": 5, "batch_size": 4, "held_out_classes": held_out}
    card = mrad_med.describe_head(variant=name, backbone=clip.card, bank=bank, training_set=training, configuration=how)
    mrad_med.save_head(network.head, output / f"{name}.pt", card, evaluator=evaluator)


mrad_tf = mrad_med.build_mrad_tf(clip, bank, temperature=0.3)
mrad_ft = mrad_med.build_mrad_ft(clip, bank, seed=0)
train("MRAD-FT", mrad_med.FineTuneTrainer, mrad_ft)
mrad_clip = mrad_med.build_mrad_clip(clip, bank, seed=0)
train("MRAD-CLIP", mrad_med.PromptTrainer, mrad_clip, image_encoder=clip.image_encoder, fine_tuned=mrad_ft.head)

print(f"held out: {', '.join(held_out)}, {len(validation)} images")
for name, network in {"MRAD-TF": mrad_tf, "MRAD-FT": mrad_ft, "MRAD-CLIP": mrad_clip}.items():
    evaluator = evaluator_of(network)
    evaluator.run()
    print(f"{name:<10} " + "  ".join(f"{metric} {value:.3f}" for metric, value in evaluator.state.metrics.items()))

detector = mrad_med.AnomalyDetector.from_bundle(
    "mrad_clip",
    checkpoint=str(output / "MRAD-CLIP.pt"),
    memory_bank=str(output / "memory_bank.safetensors"),
    image_size=image_size,
    keep_identifiers=True,  # the samples name nobody
)
results = detector.detect(mrad_med.write_sample_images(output / "images"), progress=False)
results.save(output / "results")
for name, score in results.scores.items():
    print(f"{name:<16} {score:.4f}")
cache.raise_for_failures()  # raises an error that names the images that could not be read, if there are any
