"""The server's side of cpu_store.py; vLLM imports it once an engine starts."""

from dataclasses import dataclass

from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo


@dataclass
class Meeting(WeightTransferInitInfo):
    master_address: str
    master_port: int
    world_size: int


@dataclass
class Update(WeightTransferUpdateInfo):
    names: list
    dtype_names: list
    shapes: list


class StoreEngine(WeightTransferEngine[Meeting, Update]):
    init_info_cls, update_info_cls = Meeting, Update

    def init_transfer_engine(self, meeting):
        rank = (
            self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank + 1
        )
        self.group = StatelessProcessGroup.create(meeting.master_address, meeting.master_port, rank, meeting.world_size)

    def start_weight_update(self):
        pass

    def finish_weight_update(self):
        pass

    def receive_weights(self, update):
        for name in update.names:
            self.model.load_weights([(name, self.group.broadcast(None, src=0))])

    def shutdown(self):
        self.group = None
