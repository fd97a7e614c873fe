"""The scope ``convnext_dense``, which mmengine gives to what a config takes from a base ``convnext_dense::...``."""

from __future__ import annotations

from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope, Registry

from convnext_dense.errors import UserError

SCOPE = 'convnext_dense'


class ScopeOfConfigs(Registry):
    """A registry of the scope ``convnext_dense`` that looks names up in the scope of the run.

    Our configs name classes of mmdet and mmseg, as ``LoadAnnotations``. A config that reuses a variable of such a
    base, as ``_base_.train_pipeline``, gives its dicts the scope ``convnext_dense``, which hides the scope of the run:
    a plain registry would look in mmengine's root only, miss mmdet's classes, and take mmcv's where both have one.
    """

    def get(self, key: str) -> type | None:
        """Return the class of a name; None if there is none.

        Args:
            key: A name, or one with a scope such as ``'mmdet.LoadAnnotations'``, which is looked up as anywhere.

        Raises:
            UserError: Both mmdet and mmseg have been set up in this process, and nothing says whose names are meant.
        """
        scope_of_key, _ = self.split_scope_key(key)
        if scope_of_key is None and self.parent is not None:
            toolkits = [scope for scope in self.parent.children if scope != SCOPE]
            scope = scope_of_run(toolkits, key)
            if scope is not None:
                return self.parent.children[scope].get(key)
        return super().get(key)


def scope_of_run(toolkits: list[str], name: str) -> str | None:
    """Return the one of these scopes that the current run was started in; None if there is none.

    Args:
        toolkits: Scopes that have a registry.
        name: Of the class that is looked up, for the message.

    Raises:
        UserError: Several were set up without a runner.
    """
    # A runner names its message hub and its default scope alike.
    experiment = MessageHub.get_current_instance().instance_name
    if DefaultScope.check_instance_created(experiment):
        scope = DefaultScope.get_instance(experiment).scope_name
        return scope if scope in toolkits else None
    # Without a runner, as in mmdet's init_detector, the default scope has the name of its toolkit.
    created = [scope for scope in toolkits if DefaultScope.check_instance_created(scope)]
    if len(created) > 1:
        raise UserError(
            f'{name} comes from a config of convnext_dense, and the default scopes {" and ".join(created)} were set up '
            f"in this process: write type='{created[0]}.{name}', or remove _scope_ from its dict"
        )
    return created[0] if created else None
