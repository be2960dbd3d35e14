"""From an upload to the model that everything later starts from.

Checks first; then steps that make the model easier to quantize: functions written out, a newer
opset, constants folded and operators fused. Every step has to load and to agree with the source
on a few samples, or it is left out and the reason noted. Equal uploads give equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize_worker.contract import KeptNode, SourceFile
from quantize_worker.errors import BuildFailed
from quantize_worker.steps import rewriting, safetensors_source
from quantize_worker.steps.datafile import GRAPH_FILE, write_file
from quantize_worker.steps.generated import fitting_set
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.intake import entry_of, is_safetensors, read_model
from quantize_worker.steps.kept import kept_nodes
from quantize_worker.steps.opening import Specs, check_model, open_session, short, specs_of
from quantize_worker.steps.parity import Reference
from quantize_worker.steps.samples import SampleSet
from quantize_worker.steps.skeleton import read_skeleton
from quantize_worker.steps.soundness import check_weights

LARGE_BYTES = 1 << 30  # of weights; more are never copied, in memory or on disk
COMPARED_SAMPLES = 3


@dataclass(frozen=True)
class Prepared:
    """A prepared model and what became of the upload on the way."""

    path: Path  # model.onnx, external data beside it
    did: list[str]  # sentences
    kept: list[KeptNode]
    inputs: Specs
    outputs: Specs
    generated: SampleSet  # samples for a model that came without any
    lean: bool  # open it so that its weights are not copied


def prepare(
    source: Path,
    files: Sequence[SourceFile],
    folder: Path,
    *,
    on_share: Callable[[float], None] = lambda share: None,
    large_bytes: int = LARGE_BYTES,
) -> Prepared:
    """Check an upload and write its prepared model to ``folder``.

    Args:
        source: where the upload's files lie under their paths.
        files: the upload.
        folder: for ``model.onnx`` and its data: ``model.data`` or, for a large model, hard links of
            the upload's own data files. On the same file system as ``source``.
        on_share: called with the share done.
        large_bytes: weights of more than this are mapped only: nothing is folded or fused.

    Raises:
        ModelRefused: with the code and what to do.
        BuildFailed: disk_full.
        MemoryError: if it takes more than this process may use.
    """
    work = folder.with_name(f"{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _Preparation(source, files, folder, work, large_bytes, on_share).run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Preparation:
    def __init__(
        self,
        source: Path,
        files: Sequence[SourceFile],
        folder: Path,
        work: Path,
        large_bytes: int,
        on_share: Callable[[float], None],
    ) -> None:
        self._source, self._files, self._folder, self._work = source, files, folder, work
        self._large_bytes, self._on_share = large_bytes, on_share
        self._did: list[str] = []
        self._stages = 0

    def run(self) -> Prepared:
        graph = self._read()
        check_weights(graph)
        self._on_share(0.2)
        self._lean = graph.weight_bytes() > self._large_bytes
        inputs, outputs, generated = self._open(graph)
        del graph
        self._on_share(0.4)
        if self._reference.trouble:
            self._did.append(f"Left out all rewriting: {self._reference.trouble}")
        else:
            self._rewrite()
        self._on_share(0.8)
        path = self._finish()
        kept = kept_nodes(Graph.read(path))
        return Prepared(path, self._did, kept, inputs, outputs, generated, self._lean)

    def _read(self) -> Graph:
        """The upload's graph, its weights where they are."""
        entry = entry_of(self._files)
        if not is_safetensors(entry):
            path, model = self._source / entry, read_model(self._source, self._files)
        else:
            path, said = safetensors_source.export(self._source / entry, self._stage().parent)
            self._did.append(said)
            model = read_skeleton(path)
        check_model(path)  # first of all: what follows takes a well-formed graph for granted
        rewriting.strip(model)
        return Graph(model, path.parent, own=path.name)

    def _open(self, graph: Graph) -> tuple[Specs, Specs, SampleSet]:
        """Run the source on generated samples, which every later form is held against."""
        self._current = self._stage()
        graph.write(self._current.parent, linked=True)
        session = open_session(self._current, lean=self._lean)
        inputs, outputs = specs_of(session)
        generated = fitting_set(graph, inputs, session)
        compared = generated.chosen(range(min(COMPARED_SAMPLES, len(generated))))
        self._reference = Reference(session, compared.samples(), lean=self._lean)
        return inputs, outputs, generated

    def _rewrite(self) -> None:
        self._try("writing functions out", rewriting.inline_functions)
        for opset in rewriting.OPSETS:
            if self._try(f"the upgrade to opset {opset}", rewriting.upgrade(opset)):
                break
        self._try("taking weights directly", rewriting.reach_constants)
        if not self._lean and self._try("folding and fusing", rewriting.optimize(folding=True)) is None:
            self._try("fusing without folding", rewriting.optimize(folding=False))
        if self._lean:
            self._did.append("Left out folding and fusing: the model is too large to be copied.")

    def _try(self, name: str, step: rewriting.Step) -> bool | None:
        """Take a step, if it succeeds and its result agrees with the source.

        Returns:
            Whether it was taken; None if it was refused.
        """
        target = self._stage()
        try:
            said = step(self._current, target.parent)
            reason = self._reference.disagreement(target) if said else ""
        except (MemoryError, BuildFailed):
            raise
        except rewriting.NotTaken as refusal:
            said, reason = "", str(refusal)
        except Exception as error:  # onnx's and ONNX Runtime's tools raise many unrelated kinds
            said, reason = "", short(error, self._current)
        if reason:
            self._did.append(f"Left out {name}: {reason}")
            return None
        if said:
            self._did.append(said)
            self._current = target
        return bool(said)

    def _finish(self) -> Path:
        """Write the model in its final form, with inferred shapes where that is no harm."""
        Graph.read(self._current).write(self._folder, linked=self._lean)
        path = self._folder / GRAPH_FILE
        plain = path.read_bytes()
        reason = rewriting.infer_shapes(path) or self._reference.disagreement(path)
        if reason:
            self._did.append(f"Left out shape inference: {reason}")
            write_file(path, plain)
            open_session(path, lean=self._lean)
        return path

    def _stage(self) -> Path:
        """Where the next form of the model goes."""
        self._stages += 1
        path = self._work / str(self._stages) / GRAPH_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
