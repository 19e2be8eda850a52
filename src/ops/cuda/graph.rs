//! A micro-step as a CUDA graph: recorded the second time it runs, one launch from then on.
//!
//! A micro-step is some four hundred launches of fixed geometry on fixed addresses. Recorded, they cost the
//! host one call; that pays where the kernels are short (a small model, a short micro-batch) and changes no
//! bit, for the same kernels run in the same order.
//!
//! The first time runs as it is, so that nothing is allocated or loaded while a graph is recorded. Scratch
//! that has moved since makes every graph void, and one of another phase (as many tokens as a step has in a
//! warm-up of the batch) is dropped when the next begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::Cuda;
use super::driver::Gpu;
use crate::ops::{ReplayKey, Result};

/// The state of a piece of work.
enum Stage {
    /// It ran once.
    Seen,
    /// It is being recorded.
    Recording,
    Ready(Graph),
}

/// The recorded pieces of work.
#[derive(Default)]
pub struct Graphs {
    stages: BTreeMap<ReplayKey, Stage>,
    /// The scratch that the graphs were recorded on.
    generation: u64,
}

/// A graph that can be launched.
struct Graph {
    exec: sys::CUgraphExec,
    gpu: Arc<Gpu>,
}

// SAFETY: a handle that the driver lets any thread use; only one does at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // Launches that are under way must end first.
        if self.gpu.synchronize("cuGraphExecDestroy").is_ok() {
            // SAFETY: instantiated in `end_capture`, destroyed here alone.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

impl Gpu {
    /// From here on the stream's work is recorded instead of run.
    fn begin_capture(&self) -> Result<()> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live.
        unsafe { result::stream::begin_capture(self.stream(), mode) }
            .map_err(|e| self.fail("cuStreamBeginCapture", e))
    }

    /// Ends the recording and makes it launchable.
    fn end_capture(self: &Arc<Gpu>) -> Result<Graph> {
        self.bind()?;
        // SAFETY: the stream is live and recording.
        let graph = unsafe { result::stream::end_capture(self.stream()) }
            .map_err(|e| self.fail("cuStreamEndCapture", e))?;
        // SAFETY: `graph` was made in the line before, and is not needed once it is instantiated.
        unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec.map(|exec| Graph { exec, gpu: Arc::clone(self) })
                .map_err(|e| self.fail("cuGraphInstantiate", e))
        }
    }

    fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.bind()?;
        // SAFETY: graph and stream are live.
        unsafe { result::graph::launch(graph.exec, self.stream()) }.map_err(|e| self.fail("cuGraphLaunch", e))
    }
}

impl Cuda {
    /// Launches the graph of `key` if there is one. Else the caller does the work, which is recorded from
    /// the second time on.
    pub(super) fn replay_graph(&mut self, key: ReplayKey) -> Result<bool> {
        if !self.options.cuda_graph {
            return Ok(false);
        }
        let gpu = &self.kernels.gpu;
        let graphs = &mut self.graphs;
        if graphs.generation != self.scratch.generation() {
            graphs.stages.clear();
            graphs.generation = self.scratch.generation();
        }
        match graphs.stages.get(&key) {
            None => graphs.stages.retain(|other, _| other.of != key.of || other.phase == key.phase),
            Some(Stage::Ready(graph)) => {
                gpu.launch_graph(graph)?;
                self.gelu_sums = None;
                return Ok(true);
            }
            Some(Stage::Seen | Stage::Recording) => {
                graphs.stages.insert(key, Stage::Recording);
                gpu.begin_capture()?;
            }
        }
        Ok(false)
    }

    /// Ends the work of `key` that [`Cuda::replay_graph`] left to the caller.
    pub(super) fn end_graph(&mut self, key: ReplayKey) -> Result<()> {
        if !self.options.cuda_graph {
            return Ok(());
        }
        let graphs = &mut self.graphs;
        let stage = match graphs.stages.get(&key) {
            Some(Stage::Recording) => {
                let graph = self.kernels.gpu.end_capture()?;
                self.kernels.gpu.launch_graph(&graph)?;
                Stage::Ready(graph)
            }
            _ => Stage::Seen,
        };
        graphs.stages.insert(key, stage);
        Ok(())
    }

    /// Breaks the CUDA context, for tests of the error that follows.
    #[cfg(test)]
    pub fn fault(&mut self) {
        super::launch::gelu::fault(&self.kernels);
    }

    /// How many graphs are ready to launch, for tests.
    #[cfg(test)]
    pub fn ready_graphs(&self) -> usize {
        self.graphs.stages.values().filter(|stage| matches!(stage, Stage::Ready(_))).count()
    }
}
