"""Only for tests: new weights for a vLLM server without CUDA, where TRL's own way is NCCL.

Both sides meet in torch's TCPStore: `StoreEngine` in the server's workers (a vLLM plugin, see `cpu_server` in
test_launch.py), `StoreClient` in the trainer, by way of cpu_trainer.py.
"""

from concurrent.futures import ThreadPoolExecutor


def register() -> None:
    """The plugin: vLLM calls it in every process of the server."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "cpu_store" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("cpu_store", "cpu_store_engine", "StoreEngine")


def use_in_trainer() -> None:
    import torch
    import trl.generation.vllm_generation as generation
    from vllm.distributed.utils import StatelessProcessGroup

    class StoreClient(generation.VLLMClient):
        def init_communicator(self, device=0):
            world = self.get_world_size() + 1
            meeting = {"master_address": "127.0.0.1", "master_port": self.group_port, "world_size": world}
            with ThreadPoolExecutor(1) as thread:
                url = f"{self.base_url}/init_weight_transfer_engine"
                asked = thread.submit(self._post, url, json={"init_info": meeting})
                self.communicator = StatelessProcessGroup.create("127.0.0.1", self.group_port, 0, world)
                asked.result()

        def update_named_params(self, metadata, named_params):
            names, dtypes, shapes = (list(column) for column in zip(*metadata, strict=True))
            update = {"names": names, "dtype_names": dtypes, "shapes": shapes}
            self._start_weight_update()
            with ThreadPoolExecutor(1) as thread:
                asked = thread.submit(self._post, f"{self.base_url}/update_weights", json={"update_info": update})
                for _, weights in named_params:
                    self.communicator.broadcast(weights.detach().clone(), src=0)
                asked.result()
            self._finish_weight_update()

        def close_communicator(self):
            self.communicator = None

    assert not torch.cuda.is_available(), "on CUDA the test is of TRL's own client"
    generation.VLLMClient = StoreClient
