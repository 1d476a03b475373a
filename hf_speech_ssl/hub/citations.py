"""Whom to cite, as BibTeX."""

BIRQ = """@inproceedings{birq,
  title = {{BiRQ}: Bi-Level Self-Labeling Random Quantization for Self-Supervised Speech Recognition},
  author = {Jiang and Cui and Kingsbury and Chen, T. and Chen, L.},
  booktitle = {ICASSP},
  year = {2026},
  note = {arXiv:2509.15430}
}"""
BEST_RQ = """@inproceedings{bestrq,
  title = {Self-supervised Learning with Random-projection Quantizer for Speech Recognition},
  author = {Chiu, Chung-Cheng and Qin, James and Zhang, Yu and Yu, Jiahui and Wu, Yonghui},
  booktitle = {ICML},
  year = {2022},
  note = {arXiv:2202.01855}
}"""
CHUNK_SSL = """@article{chunkssl,
  title = {Chunk Based Speech Pre-training with High Resolution Finite Scalar Quantization},
  author = {Tang and Tseng},
  journal = {arXiv:2509.15579},
  year = {2025}
}"""
FSQ = """@inproceedings{fsq,
  title = {Finite Scalar Quantization: {VQ-VAE} Made Simple},
  author = {Mentzer, Fabian and Minnen, David and Agustsson, Eirikur and Tschannen, Michael},
  booktitle = {ICLR},
  year = {2024},
  note = {arXiv:2309.15505}
}"""

# For each model type its own papers, and the paper of the package's other method.
OWN = {"birq": [BIRQ, BEST_RQ], "chunkssl": [CHUNK_SSL, FSQ], "speech_fsq": [CHUNK_SSL, FSQ]}
OTHER = {"birq": CHUNK_SSL, "chunkssl": BIRQ, "speech_fsq": BIRQ}
