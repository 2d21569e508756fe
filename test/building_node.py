"""A tokenizer node that first builds engines, for a GPU that this machine need not have."""

import sys

from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.tensorrt.request import specify
from adaptok_ros.models.folders import find_model, shipped_models
from adaptok_ros.nodes.executable import run
from adaptok_ros.nodes.tokenizer_node import TokenizerNode


class BuildingNode(TokenizerNode):
    def load(self, values, build):
        # The largest graphs, which take longest.
        for model in shipped_models():
            request = GraphRequest(find_model(model), 'lit', 'tensorrt_rtx')
            build.build(*specify(request, '8.6'))
        super().load(values, build)


if __name__ == '__main__':
    sys.exit(run('tokenizer_node', BuildingNode, None, __doc__))
