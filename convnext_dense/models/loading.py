"""Load weights of every source and format into a ConvNeXt, by every way that torch and mmengine have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Set
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit

from convnext_dense.errors import UserError
from convnext_dense.models.staged import LayeredModule
from convnext_dense.weights.dialects import WRAPPED_MODULES
from convnext_dense.weights.fit import Wanted, as_written, fit
from convnext_dense.weights.known import Known, Statistics
from convnext_dense.weights.sources import facts_of, read

# In the metadata of a state dict, of a ConvNeXt whose tensors ConvNeXtLoadHook has fitted and announced.
FITTED = 'fitted_to_convnext'


class PretrainedModule(LayeredModule):
    """A backbone that takes published weights: it fits a file completely or raises an error.

    ``init_cfg``, ``load_state_dict`` and :class:`convnext_dense.engine.load_hook.ConvNeXtLoadHook` all go this way.

    Attributes:
        allow_statistics_mismatch: Inputs may be normalised in another way than in the training of the weights.
        weights_source, weights_statistics: Of the weights that were loaded by a name; None if nothing is known.
    """

    allow_statistics_mismatch = False
    weights_source: str = ''
    weights_statistics: Statistics | None = None

    @abstractmethod
    def wanted_weights(self, place: str = '') -> Wanted:
        """Describe what this module wants from a file; a sharded one inside ``whole_parameters``.

        Args:
            place: Where it is in the model around it, such as ``backbone.``, for messages.
        """

    def contradictions(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the arguments that weights belong to which leave no trace in shapes and are other here."""
        return {}

    def take_facts(self, source: str, facts: Known) -> None:
        """Keep what is known about the weights that are loaded, for the check against the data preprocessor.

        Raises:
            UserError: They belong to a model with another eps, norm or activation.
        """
        wrong = self.contradictions(facts.arguments or {})
        if wrong:
            raise UserError(
                f'{source}: these weights belong to a {type(self).__name__} with {as_written(wrong)}: set '
                f'{as_written(facts.arguments or {})} in the backbone, without norm_cfg and act_cfg'
            )
        self.weights_source, self.weights_statistics = source, facts.statistics

    def shapes_of_parameters(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter by its name, without the names of wrappers around its parts."""
        return {WRAPPED_MODULES.sub('', name): tuple(param.shape) for name, param in self.named_parameters()}

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names; the official initialisation was done at construction.

        ``dict(type='Pretrained', checkpoint=SOURCE)`` takes every source of
        :func:`convnext_dense.weights.sources.fetch`; its ``prefix`` chooses among several ConvNeXts in one file.

        Raises:
            UserError: The file cannot be had or does not fit.
        """
        whole: Any = self.init_cfg
        again = self.is_init
        configs = [whole] if isinstance(whole, dict) else list(whole or ())
        pretrained = [cfg for cfg in configs if cfg['type'] in ('Pretrained', PretrainedInit)]
        # mmengine's own Pretrained knows neither our sources nor safe reading in every version of it.
        self.init_cfg: Any = [cfg for cfg in configs if cfg not in pretrained]
        try:
            super().init_weights()
        finally:
            self.init_cfg = whole
        if again:
            return
        for cfg in pretrained:
            self._load_pretrained(cfg['checkpoint'], cfg.get('prefix'))

    def _load_pretrained(self, source: str, prefix: str | None) -> None:
        try:
            checkpoint = read(source)
        except UserError as error:
            raise UserError(
                f'the pretrained weights {source} could not be read ({error}); or give another file as '
                'model.backbone.init_cfg.checkpoint, or train from scratch with '
                '--cfg-options model.backbone.init_cfg=None'
            ) from error
        try:
            fitted = fit(self.wanted_weights(), checkpoint, prefix)
        except UserError as error:
            raise UserError(f'{source}: {error}') from error
        facts = facts_of(source, checkpoint)
        self.take_facts(source, facts)
        print_log('; '.join([fitted.summary, *facts.clauses()]), logger='current')
        params = {WRAPPED_MODULES.sub('', name): param for name, param in self.named_parameters()}
        with torch.no_grad():
            for name, value in fitted.tensors.items():
                params[name].copy_(value)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict, *args: Any, **kwargs: Any
    ) -> None:
        # Every way of loading calls this: load_state_dict, mmengine's load_checkpoint and runner.
        found = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        if any('_fsdp_wrapped_module' in name for name, _ in self.named_parameters()):
            self._check_names(found.keys(), prefix)  # only shards are here, the shapes are unknown
        elif not (local_metadata.get(FITTED) and self._has_shapes_of(found)):
            own = self.state_dict()
            fitted = fit(self.wanted_weights(prefix), found)
            print_log(fitted.summary, logger='current')
            for name in found:
                del state_dict[prefix + name]
            for name, value in own.items():
                state_dict[prefix + name] = fitted.tensors.get(WRAPPED_MODULES.sub('', name), value)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def _has_shapes_of(self, found: Mapping[str, Any]) -> bool:
        own = self.state_dict()
        return own.keys() == found.keys() and all(own[name].shape == found[name].shape for name in own)

    def _check_names(self, found: Set[str], place: str) -> None:
        wanted = {WRAPPED_MODULES.sub('', name) for name, _ in self.named_parameters()}
        if found != wanted:
            raise UserError(
                f'the sharded {type(self).__name__} at {place!r} lacks {sorted(wanted - found)[:3]} and does not know '
                f'{sorted(found - wanted)[:3]}: sharded models load other layouts through '
                "custom_hooks=[dict(type='ConvNeXtLoadHook')] only"
            )
