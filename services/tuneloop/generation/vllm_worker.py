"""What runs inside vLLM's worker process; mixed into its worker class by name, imports no vllm."""

from typing import Any


class ReloadExtension:
    """Adds a reload that also reaches a tied output layer."""

    reload_weights: Any
    model_runner: Any
    device: Any

    def replace_weights(self, folder: str) -> None:
        """Load all weights of `folder` in place.

        On a CPU vLLM keeps a packed copy of the output layer's weights. Where that layer is tied
        to the input embeddings no file holds its weights, so `reload_weights` passes it by and it
        would go on computing with the old ones: it is packed afresh here.
        """
        self.reload_weights(weights_path=folder)
        if self.device.type != "cpu":
            return
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear") and hasattr(module, "org_vocab_size"):
                module.quant_method.process_weights_after_loading(module)
