"""Kinds 2, 3, 4, 6, F6, F7 and F13: checkpoints that are cut off, damaged, mixed or gone, through the real tools."""

import errno
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TOY
from forked import run_forked
from private_mounts import mount, reason_against

from convnext_dense import UserError
from convnext_dense.engine.training_state import check_optimizer_fits, check_training_state
from convnext_dense.run.work_dir import default_work_dir
from convnext_dense.weights.safe_reading import read_file

ONE_EPOCH = ('train_cfg.max_epochs=1',)
KEEP_ONE = ('default_hooks.checkpoint.max_keep_ckpts=1',)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.json')


@pytest.fixture
def work(trained, tmp_path) -> Path:
    """A work folder with epoch_1.pth and epoch_2.pth, the same training."""
    folder = tmp_path / 'work'
    shutil.copytree(trained, folder)
    checkpoint = torch.load(folder / 'epoch_1.pth', weights_only=False)
    checkpoint['meta'].update(epoch=2, iter=12)
    torch.save(checkpoint, folder / 'epoch_2.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    return folder


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    """In the middle of the largest tensor; elsewhere there is padding."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max((entry for entry in archive.infolist() if '/data/' in entry.filename), key=lambda e: e.file_size)
    content[begin_of(entry, content) + entry.file_size // 2] ^= 4
    path.write_bytes(content)


def begin_of(entry, content):
    """Return where the bytes of an entry begin: behind a header of 30 bytes, its name and padding."""
    lengths = content[entry.header_offset + 26 : entry.header_offset + 30]
    return entry.header_offset + 30 + int.from_bytes(lengths[:2], 'little') + int.from_bytes(lengths[2:], 'little')


def without(*fields):
    def change(path):
        checkpoint = torch.load(path, weights_only=False)
        for name in fields:
            del checkpoint[name]
        torch.save(checkpoint, path)

    return change


DAMAGES = {
    'empty': lambda path: path.write_bytes(b''),
    'cut in half': cut_in_half,
    'without its last byte': lambda path: path.write_bytes(path.read_bytes()[:-1]),
    'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
    'a flipped bit': flip_a_bit,
    'text': lambda path: path.write_text('no checkpoint'),
    'a web page': lambda path: path.write_text('<html>'),
    'a list': lambda path: torch.save([1, 2], path),
    'without optimizer': without('optimizer'),
    'without schedule': without('param_schedulers'),
    'without meta': without('meta'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_newest_readable_checkpoint_is_resumed(damage, work, train):
    DAMAGES[damage](work / 'epoch_2.pth')
    outcome = train('--resume')
    assert outcome.status == 0, outcome.text
    assert 'epoch_1.pth: epoch 1, iteration 6' in outcome.text and 'passed over epoch_2.pth: ' in outcome.text
    assert (work / 'epoch_3.pth').exists()
    assert 'Epoch(train) [1]' not in outcome.text, 'nothing is trained twice'


POINTERS = {
    'missing': lambda path: path.unlink(),
    'empty': lambda path: path.write_text(''),
    'binary': lambda path: path.write_bytes(bytes(range(256))),
    'to a missing file': lambda path: path.write_text('/gone/epoch_9.pth'),
    'to an older file': lambda path: path.write_text(str(path.with_name('epoch_1.pth'))),
}


@pytest.mark.parametrize('pointer', POINTERS)
def test_pointer_does_not_matter(pointer, work, train):
    POINTERS[pointer](work / 'last_checkpoint')
    outcome = train('--resume')
    assert outcome.status == 0 and 'epoch_2.pth: epoch 2, iteration 12' in outcome.text
    assert (work / 'last_checkpoint').read_text() == str(work / 'epoch_3.pth')


def test_nothing_readable_is_no_fresh_start(work, train):
    before = names(work)
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (work / name).write_bytes(b'')
    outcome = train('--resume')
    assert outcome.status == 1 and 'none of the 2 checkpoints in' in outcome.error and 'is empty' in outcome.error
    assert names(work) == before


def test_fresh_start_beside_checkpoints_is_refused(work, train):
    content = {name: (work / name).read_bytes() for name in names(work)}
    outcome = train()
    assert outcome.status == 1 and 'Traceback' not in outcome.text
    for way in ('epoch_1.pth, epoch_2.pth', '--resume', '--work-dir', '--overwrite'):
        assert way in outcome.error
    assert {name: (work / name).read_bytes() for name in names(work)} == content
    outcome = train('--overwrite', change=ONE_EPOCH)
    assert outcome.status == 0 and not (work / 'epoch_2.pth').exists()
    assert '--resume continues the run that --overwrite deletes' in train('--overwrite', '--resume').error


def test_overwrite_keeps_the_old_run_until_the_new_one_can_train(work, train):
    outcome = train('--overwrite', change=['model.no_such_option=1'])
    assert outcome.status == 1 and {'epoch_1.pth', 'epoch_2.pth'} <= set(names(work))


def test_resume_in_an_empty_folder_starts_from_load_from(trained, train, tmp_path):
    outcome = train('--resume', change=[f'load_from={trained}/epoch_1.pth', *ONE_EPOCH])
    assert outcome.status == 0
    assert f'starts from the load_from of the config, {trained}/epoch_1.pth, at iteration 0' in outcome.text
    assert f'Load checkpoint from {trained}/epoch_1.pth' in outcome.text.replace('convnext-dense:', '')
    outcome = train('--resume', change=ONE_EPOCH, work='other')
    assert 'starts from the weights of the config at iteration 0' in outcome.text


def test_explicit_checkpoint_without_training_state_is_refused(work, train):
    for name, damage in (('best.pth', without('optimizer')), ('bare.pth', without('meta', 'message_hub'))):
        path = work / name
        shutil.copy(work / 'epoch_1.pth', path)
        damage(path)
        outcome = train('--resume', path)
        assert (
            outcome.status == 1 and 'is not a checkpoint of a training that can be resumed: it has no' in outcome.error
        )


@pytest.mark.parametrize(
    'change, sentence',
    [
        (
            ['optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.momentum=0.9'],
            "has 'betas', so it is of another kind than the config's SGD",
        ),
        (['optim_wrapper.paramwise_cfg.bias_lr_mult=2'], 'resume with the model, optimizer and layer decay'),
    ],
)
def test_other_optimizer_is_refused(change, sentence, work, train):
    outcome = train('--resume', change=change)
    assert outcome.status == 1 and sentence in outcome.error


def test_moved_folder_resumes(work, train, tmp_path):
    work.rename(tmp_path / 'moved')
    outcome = train('--resume', work='moved')
    assert outcome.status == 0 and f'resumed from {tmp_path}/moved/epoch_2.pth' in outcome.text


BEST = ('default_hooks.checkpoint.save_best=score', 'default_hooks.checkpoint.rule=greater')


def test_resume_keeps_the_best_checkpoint(train, tmp_path):
    """It is deleted when a better one is on the disk, and in a fresh start by --overwrite alone."""
    work = tmp_path / 'work'
    assert train(change=[*BEST, *ONE_EPOCH, 'val_evaluator.scores=[0.9]']).status == 0
    best = (work / 'best_score_epoch_1.pth').read_bytes()
    for epochs in (1, 2):  # nothing is left to train, and a worse epoch
        change = [*BEST, 'val_evaluator.scores=[0.1]', f'train_cfg.max_epochs={epochs}']
        assert train('--resume', change=change).status == 0
        assert (work / 'best_score_epoch_1.pth').read_bytes() == best
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (work / name).unlink()
    refused = train(change=[*BEST, *ONE_EPOCH])
    assert refused.status == 1 and 'holds checkpoints of an earlier run (best_score_epoch_1.pth)' in refused.error
    assert (work / 'best_score_epoch_1.pth').read_bytes() == best
    assert train('--overwrite', change=ONE_EPOCH).status == 0
    assert [name for name in names(work) if name.endswith('.pth')] == ['epoch_1.pth']


def test_copied_folder_leaves_the_best_of_the_original(train, tmp_path):
    assert train(change=[*BEST, *ONE_EPOCH, 'val_evaluator.scores=[0.1]'], work='first').status == 0
    shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
    outcome = train('--resume', change=[*BEST, 'val_evaluator.scores=[0.9]', 'train_cfg.max_epochs=2'], work='copy')
    assert outcome.status == 0
    assert (tmp_path / 'first/best_score_epoch_1.pth').exists()
    assert [name for name in names(tmp_path / 'copy') if 'best' in name] == ['best_score_epoch_2.pth']


def test_dumped_config_trains_again(work, train, tmp_path):
    outcome = train('--resume', change=['load_from=gone.pth'])
    assert outcome.status == 0
    dumped = work / 'toy.py'
    assert 'convnext-dense:' not in dumped.read_text() and "load_from = 'gone.pth'" in dumped.read_text()
    outcome = train(config=dumped, change=[*ONE_EPOCH, 'load_from=None'], work='again')
    assert outcome.status == 0, outcome.text
    old = tmp_path / 'old.py'
    old.write_text(f"{dumped.read_text()}\nload_from = 'convnext-dense:{work}/epoch_1.pth'\n")
    assert train(config=old, change=ONE_EPOCH, work='third').status == 0


def killed_while(action: str, count: int):
    """Return a fault: SIGKILL at the ``count``-th call of an operation of the file system on a checkpoint."""

    def inject():
        calls = 0
        original = getattr(os, action) if action == 'fsync' else getattr(Path, action)

        def fatal(first, *args, **kwargs):
            nonlocal calls
            ours = action == 'fsync' or str(first).endswith(('.pth', '.tmp'))
            calls += ours
            if ours and calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(first, *args, **kwargs)

        setattr(os if action == 'fsync' else Path, action, fatal)

    return inject


@pytest.mark.parametrize('action, count', [('fsync', 5), ('fsync', 7), ('replace', 3), ('replace', 4), ('unlink', 1)])
def test_killed_while_saving_loses_nothing(action, count, train, tmp_path):
    """One checkpoint is kept: the second is written, or the first is deleted."""
    outcome = train(change=KEEP_ONE, inject=killed_while(action, count))
    assert outcome.status == -signal.SIGKILL
    work = tmp_path / 'work'
    kept = [name for name in names(work) if name.endswith('.pth')]
    assert kept
    for name in kept:
        read_file(work / name)
    read_file(Path((work / 'last_checkpoint').read_text()))
    resumed = train('--resume', change=KEEP_ONE)
    assert resumed.status == 0, resumed.text
    assert [name for name in names(work) if not name.endswith(('.py', '.txt'))] == ['epoch_3.pth', 'last_checkpoint']


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_failing_disk_keeps_the_last_checkpoint(code, train, tmp_path):
    def inject():
        original, calls = os.fsync, 0

        def failing(descriptor):
            nonlocal calls
            calls += 1
            if calls >= 5:  # the second checkpoint: a file, its folder, the pointer and its folder for the first
                raise OSError(code, os.strerror(code))
            return original(descriptor)

        os.fsync = failing

    outcome = train(change=KEEP_ONE, inject=inject)
    assert outcome.status == 1 and f'epoch_2.pth could not be written ({os.strerror(code)})' in outcome.error
    kept = [name for name in names(tmp_path / 'work') if '.pth' in name]
    assert kept == ['epoch_1.pth'] and read_file(tmp_path / 'work/epoch_1.pth')['meta']['epoch'] == 1


@pytest.mark.parametrize('pages', [1, 2, 3, 4, 6, 8, 12, 16])
def test_full_disk_names_the_work_folder(pages, train, tmp_path):
    """A page holds 4096 bytes. Whatever comes first finds no room: lock, config, log, scalars or a checkpoint."""
    work = tmp_path / 'work'
    reason = reason_against(tmp_path)
    if reason:
        pytest.skip(f'mounts cannot be made here: {reason}')
    work.mkdir()
    outcome = train(change=ONE_EPOCH, inject=lambda: mount(work, f'size={4096 * pages}'))
    assert outcome.status == 1, outcome.text
    assert f'{work}' in outcome.error and 'No space left on device' in outcome.error, outcome.text


def test_two_trainings_do_not_share_a_folder(train, tmp_path):
    """The second one is started from within the first, by a hook of the fault."""

    def inject():
        from convnext_dense.engine.finite import FiniteStepsHook

        original = FiniteStepsHook.before_train

        def start_another(self, runner):
            second = run_forked(
                'train',
                TOY,
                '--no-data-check',
                '--work-dir',
                tmp_path / 'work',
                '--overwrite',
                log=tmp_path / 'second.txt',
            )
            print('SECOND', second.status, second.text)
            original(self, runner)

        FiniteStepsHook.before_train = start_another

    outcome = train(change=ONE_EPOCH, inject=inject)
    assert outcome.status == 0
    assert 'SECOND 1' in outcome.text
    assert 'another training (process ' in outcome.text and 'wait for it, or give another --work-dir' in outcome.text
    assert not (tmp_path / 'work/train.lock').exists()


@pytest.mark.parametrize('content', ['', 'x', json.dumps(dict(host='elsewhere', pid=1)), json.dumps(dict(pid=2**22))])
def test_stale_lock_is_taken_over(content, train, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/train.lock').write_text(content)
    (tmp_path / 'work/epoch_7.pth.tmp').write_bytes(b'left by a kill')
    assert train(change=ONE_EPOCH).status == 0
    assert not list((tmp_path / 'work').glob('*.tmp')) and not (tmp_path / 'work/train.lock').exists()


def test_work_folder_that_is_a_file(train, tmp_path):
    (tmp_path / 'work').write_text('')
    outcome = train()
    assert outcome.status == 1 and 'cannot be written to (' in outcome.error


def test_default_folder_has_the_folder_of_the_config():
    assert default_work_dir('configs/mask_rcnn/convnext_t_3x_coco.py') == 'work_dirs/mask_rcnn/convnext_t_3x_coco'
    assert default_work_dir('convnext_dense::mask_rcnn/x.py') == 'work_dirs/mask_rcnn/x'
    assert default_work_dir('configs/upernet/x.py') != default_work_dir('configs/mask_rcnn/x.py')


def test_folder_of_version_0_1_0(trained, tmp_path):
    """``--resume`` by the old default does not start from nothing; the folder resumes if it is given."""
    shutil.copytree(trained, tmp_path / 'work_dirs/toy')

    def inject():
        os.chdir(tmp_path)

    outcome = run_forked('train', TOY, '--no-data-check', '--resume', log=tmp_path / 'log.txt', inject=inject)
    assert outcome.status == 1 and 'continue that run by --work-dir work_dirs/toy' in outcome.error
    outcome = run_forked(
        'train',
        TOY,
        '--no-data-check',
        '--resume',
        '--work-dir',
        'work_dirs/toy',
        log=tmp_path / 'log.txt',
        inject=inject,
    )
    assert outcome.status == 0 and 'resumed from work_dirs/toy/epoch_1.pth' in outcome.text


WRONG = {'missing': ..., 'None': None, 'a text': 'x', 'a list': [1], 'a number': 1.5, 'a dict': {'x': 1}}
FIELDS = {
    'meta': ('a dict',),
    'state_dict': (),
    'message_hub': ('a dict',),
    'optimizer': ('a dict',),
    'param_schedulers': ('a list', 'a dict'),
    'meta.epoch': (),
    'meta.iter': (),
    'message_hub.log_scalars': ('a dict',),
    'message_hub.runtime_info': ('a dict',),
    'message_hub.resumed_keys': ('a dict',),
    'optimizer.state': ('a dict',),
    'optimizer.param_groups': (),
}


@pytest.mark.parametrize('field', FIELDS)
def test_every_field_missing_or_of_another_type(field, trained):
    """In this process: what a training and what the choice of the newest file call."""
    wrong = {name: value for name, value in WRONG.items() if name not in FIELDS[field]}
    for name, value in wrong.items():
        checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=False)
        *place, key = field.split('.')
        holder = checkpoint[place[0]] if place else checkpoint
        if value is ...:
            del holder[key]
        else:
            holder[key] = value
        with pytest.raises(UserError, match='file.pth is not a checkpoint of a training that can be resumed') as error:
            check_training_state(checkpoint, 'file.pth')
        assert key in str(error.value), (field, name)
    check_training_state(torch.load(trained / 'epoch_1.pth', weights_only=False), 'file.pth')


def test_optimizers_that_fit():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    adam = torch.optim.AdamW(parameters)
    check_optimizer_fits(adam, torch.optim.Adam(parameters).state_dict(), 'file.pth')
    with pytest.raises(UserError, match="file.pth lacks 'betas'"):
        check_optimizer_fits(adam, torch.optim.SGD(parameters, lr=1.0).state_dict(), 'file.pth')


def test_every_flipped_byte_is_noticed(trained, tmp_path):
    """A bit in the middle of every entry of the zip file."""
    path = trained / 'epoch_1.pth'
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    assert len(entries) > 20
    for entry in entries:
        damaged = bytearray(content)
        damaged[begin_of(entry, content) + entry.file_size // 2] ^= 1
        (tmp_path / 'damaged.pth').write_bytes(damaged)
        with pytest.raises(UserError, match='is damaged, its content is not what was written'):
            read_file(tmp_path / 'damaged.pth')


def test_files_without_checksums_are_read(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this torch always writes them')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.ones(3)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_file(tmp_path / 'a.pth')['a'], torch.ones(3))
