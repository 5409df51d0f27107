"""A bag-of-embeddings classifier: the mean of a text's token vectors, then two layers. Trained in a second (lesson 06).

Joulin et al., "Bag of tricks for efficient text classification" (arXiv:1607.01759), section 2, with a hidden layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput


class BagClassifier(nn.Module):
    """Reads no word order; ``model(input_ids, attention_mask, labels)`` gives ``.loss`` and ``.logits`` (B, labels).

    Its loss is the plain mean over the batch. ``forward`` has no ``**kwargs``, so the Trainer gives it no
    ``num_items_in_batch`` and divides the loss by the number of micro-batches itself.

    Args:
        vocab_size: token ids are below it.
        num_labels: classes.
        width: of the token vectors and of the hidden layer.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, vocab_size: int, num_labels: int, width: int = 64):
        super().__init__()
        for name, value in {"vocab_size": vocab_size, "num_labels": num_labels, "width": width}.items():
            if value < 1:
                raise ValueError(f"{name}={value} is out of range; allowed: a whole number >= 1")
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=0.1)  # torch's 1.0 is noise that a short run does not unlearn
        self.hidden = nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> ModelOutput:
        """Logits (B, C), and the mean cross-entropy where ``labels`` are given.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for tokens and 0 for padding; None: there is no padding.
            labels: (B,), or None; -100 is no target.
        """
        weights = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
        weights = weights.to(self.embedding.weight)  # (B, L)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        # The weighted sum in one operation: the vectors (B, L, W) are never stored.
        mean = F.embedding_bag(input_ids, self.embedding.weight, mode="sum", per_sample_weights=weights)  # (B, W)
        logits = self.classifier(self.hidden(mean).relu())  # (B, C)
        if labels is None:
            return ModelOutput(logits=logits)
        return ModelOutput(loss=F.cross_entropy(logits, labels), logits=logits)
