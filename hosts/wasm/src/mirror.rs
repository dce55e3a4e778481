//! A guest's disk that is being mirrored: by the module for as long as it lives, and as it is without.

use crate::constants::{ENOMEM, POLL_BUSY, POLL_CONCLUDED};
use crate::disks::{Callbacks, Host, Live, SOURCE, TARGET};
use crate::layout::{EVENT, IOVEC, JOB_INFO, JOB_OPTIONS, Record};
use crate::module::{Failure, Module, Program, Result};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is chosen; the rest is as the library has it. 0 is the library's choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// `MIRROR_COPY_`.
    pub copy_mode: u32,
    /// Bytes in which changes are tracked.
    pub granularity: u64,
    /// Bytes of copy buffers.
    pub buf_size: u64,
    /// Bytes a second.
    pub speed: u64,
    /// Most bytes of linear memory that the module may have.
    pub memory_limit: Option<usize>,
}

/// A request of the guest's that isn't done.
#[derive(Debug)]
enum Kind {
    Read { length: usize },
    Write { data: Vec<u8> },
    Flush,
}

#[derive(Debug)]
struct Request {
    kind: Kind,
    offset: u64,
    /// Its buffer in linear memory: a list of one, and behind it the data.
    block: u32,
}

const LIST: u32 = 8;

impl Request {
    fn length(&self) -> u32 {
        match &self.kind {
            Kind::Read { length } => *length as u32,
            Kind::Write { data } => data.len() as u32,
            Kind::Flush => 0,
        }
    }
}

/// How a request ended; a read's data.
pub type Outcome = io::Result<Vec<u8>>;

/// What a poll has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do at once.
    Busy,
    /// Nothing to do until this time, in nanoseconds.
    Idle {
        /// When there is.
        wake_at: u64,
    },
    /// The mirror is over: the guest's disk is one again.
    Over,
}

/// Something that happened to the job: the event, its word, and the word for the job's state in it.
#[derive(Clone, Debug)]
pub struct Event {
    /// What it is.
    pub word: String,
    /// What the job has become, if that is what it tells.
    pub status: String,
    /// All of it.
    pub record: Record,
}

/// The module at work.
struct Running {
    module: Module,
    callbacks: Callbacks,
    filter: u32,
    job: u32,
}

/// Where the guest's requests go.
enum Way {
    Through(Box<Running>),
    /// The module is gone: to the disk itself.
    Direct(Box<Host>),
}

/// The guest's disk.
pub struct Mirror {
    way: Option<Way>,
    /// What was asked for and isn't done, by number: what to do again if the module is lost.
    open: BTreeMap<u32, Request>,
    /// Those of them that the module had no room for, to be offered again.
    waiting: VecDeque<u32>,
    finished: VecDeque<(u32, Outcome)>,
    next: u32,
    /// Why the module is gone, if it was lost.
    pub lost: Option<String>,
}

impl Mirror {
    /// Begins to mirror the source to the target, which is as long.
    pub fn new(program: &Program, host: Host, settings: &Settings) -> Result<Self> {
        let lengths = host.disks.each_ref().map(|disk| disk.metadata().map_or(0, |metadata| metadata.len()));
        let mut module = Module::new(program, host)?;
        let callbacks = Callbacks::add(&mut module)?;
        let source = callbacks.device(&mut module, SOURCE, lengths[0])?;
        let target = callbacks.device(&mut module, TARGET, lengths[1])?;
        let filter = module.make(|module, out| module.try_call("mirror_filter_new", (source, out)))?;
        let options = options(&mut module, settings, callbacks.prepare)?;
        let (job, _) = module.with(&options, |module, options| {
            module.make(|module, out| module.try_call("mirror_job_new", (filter, target, options, out)))
        })?;
        module.try_call("mirror_job_start", (job,))?;
        let way = Some(Way::Through(Box::new(Running { module, callbacks, filter, job })));
        let (open, waiting, finished) = (BTreeMap::new(), VecDeque::new(), VecDeque::new());
        Ok(Self { way, open, waiting, finished, next: 0, lost: None })
    }

    /// Asks for a read. The number comes back from [`Self::finished`].
    pub fn read(&mut self, offset: u64, length: usize) -> u32 {
        self.ask(Kind::Read { length }, offset)
    }

    /// Asks for a write.
    pub fn write(&mut self, offset: u64, data: Vec<u8>) -> u32 {
        self.ask(Kind::Write { data }, offset)
    }

    /// Asks for a flush.
    pub fn flush(&mut self) -> u32 {
        self.ask(Kind::Flush, 0)
    }

    /// A request that is done. What is told here as done well stays done, whatever becomes of the module.
    pub fn finished(&mut self) -> Option<(u32, Outcome)> {
        self.finished.pop_front()
    }

    /// Does a part of the work; `on_event` is told what happened.
    pub fn poll(&mut self, now: u64, mut on_event: impl FnMut(&Event)) -> Progress {
        for number in std::mem::take(&mut self.waiting) {
            self.offer(number);
        }
        let polled = self.through(|running| running.poll(now, &mut on_event));
        self.collect();
        match polled {
            Some(Ok(progress)) => progress,
            // It has no memory to go on with: the guest does without a mirror, on the disk that it is on.
            Some(Err(error)) => {
                self.end(&error);
                Progress::Over
            }
            None => Progress::Over,
        }
    }

    /// Asks for the switch to the target.
    pub fn complete(&mut self) -> Result<()> {
        self.through(|running| running.module.try_call("mirror_job_complete", (running.job,)).map(|_| ()))
            .unwrap_or(Ok(()))
    }

    /// A snapshot of the job.
    pub fn query(&mut self) -> Option<Record> {
        self.through(|running| {
            let job = running.job;
            let filled = running
                .module
                .fill(&JOB_INFO, |module, info| module.try_call("mirror_job_query", (job, info)));
            Ok(filled?.1)
        })?
        .ok()
    }

    /// Which disk has the guest's data.
    pub fn live(&mut self) -> Live {
        self.host().live
    }

    /// The disks and what is known of them.
    pub fn host(&mut self) -> &mut Host {
        match self.way.as_mut().expect("a way is put back whenever it is taken") {
            Way::Through(running) => running.module.host(),
            Way::Direct(host) => host,
        }
    }

    /// The module, while there is one.
    pub fn module(&mut self) -> Option<&mut Module> {
        match &mut self.way {
            Some(Way::Through(running)) => Some(&mut running.module),
            _ => None,
        }
    }

    /// The files, when all is over: the source and the target.
    #[must_use]
    pub fn into_disks(mut self) -> [File; 2] {
        match self.way.take().expect("a way is put back whenever it is taken") {
            Way::Through(running) => running.module.into_host().disks,
            Way::Direct(host) => host.disks,
        }
    }

    fn ask(&mut self, kind: Kind, offset: u64) -> u32 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Request { kind, offset, block: 0 });
        self.offer(number);
        self.collect();
        number
    }

    /// Passes an open request to the filter.
    fn offer(&mut self, number: u32) {
        let Some(mut request) = self.open.remove(&number) else { return };
        let passed = self.through(|running| running.pass(number, &mut request));
        self.open.insert(number, request);
        match passed {
            Some(Err(Failure::Refused { errno: ENOMEM, .. })) => self.waiting.push_back(number),
            Some(Err(Failure::Refused { errno, .. })) => {
                self.settle(number, Err(io::Error::from_raw_os_error(errno)));
            }
            Some(Ok(()) | Err(Failure::Lost(_))) | None => {}
        }
    }

    /// Takes what the module has told that it is done with. If it is gone the guest goes on without it: what it had taken
    /// and not finished is done again, on the disk that the guest is on. That is right whatever had become of it: a request
    /// that isn't done may have any effect of its own, none, or all.
    fn collect(&mut self) {
        for (number, result) in std::mem::take(&mut self.host().finished) {
            let Some(request) = self.open.get(&number) else { continue };
            let (block, length) = (request.block, request.length());
            let is_read = matches!(request.kind, Kind::Read { .. });
            let data = self.through(|running| {
                let data = running.module.bytes(block + LIST, length as usize)?.to_vec();
                running.module.free(block, LIST + length, 8)?;
                Ok(data)
            });
            match data {
                _ if result < 0 => self.settle(number, Err(io::Error::from_raw_os_error(-result))),
                _ if !is_read => self.settle(number, Ok(Vec::new())),
                Some(Ok(data)) => self.settle(number, Ok(data)),
                // What was read is lost with the module.
                Some(Err(_)) | None => {}
            }
        }
        if let Some(Way::Direct(_)) = self.way {
            self.waiting.clear();
            for number in self.open.keys().copied().collect::<Vec<_>>() {
                self.do_directly(number);
            }
        }
    }

    fn settle(&mut self, number: u32, outcome: Outcome) {
        self.open.remove(&number);
        self.finished.push_back((number, outcome));
    }

    /// Without a module.
    fn do_directly(&mut self, number: u32) {
        let Some(request) = self.open.remove(&number) else { return };
        let disk = self.host().live_disk();
        let outcome = match request.kind {
            Kind::Read { length } => {
                let mut data = vec![0; length];
                disk.read_exact_at(&mut data, request.offset).map(|()| data)
            }
            Kind::Write { data } => disk.write_all_at(&data, request.offset).map(|()| Vec::new()),
            Kind::Flush => disk.sync_data().map(|()| Vec::new()),
        };
        self.finished.push_back((number, outcome));
    }

    /// Does something with the module, if there is one. If it is lost by that, it is left behind.
    fn through<T>(&mut self, act: impl FnOnce(&mut Running) -> Result<T>) -> Option<Result<T>> {
        let Some(Way::Through(running)) = &mut self.way else { return None };
        let result = act(running);
        if let Err(Failure::Lost(error)) = &result {
            self.lost = Some(format!("{error:#}"));
            self.leave();
        }
        Some(result)
    }

    fn leave(&mut self) {
        if let Some(Way::Through(running)) = self.way.take() {
            self.way = Some(Way::Direct(Box::new(running.module.into_host())));
        }
    }

    /// Ends the mirror, whose job can't go on.
    fn end(&mut self, error: &Failure) {
        self.lost.get_or_insert_with(|| error.to_string());
        let freed = self.through(|running| running.module.try_call("mirror_job_free", (running.job,)));
        if freed.is_some() {
            self.collect();
            self.leave();
            self.collect();
        }
    }
}

impl Running {
    fn poll(&mut self, now: u64, on_event: &mut impl FnMut(&Event)) -> Result<Progress> {
        let (job, module) = (self.job, &mut self.module);
        let wake_at = module.alloc(8, 8)?;
        let polled = module.try_call("mirror_job_poll", (job, now, wake_at))?;
        let mut at = [0; 8];
        at.copy_from_slice(module.bytes(wake_at, 8)?);
        module.free(wake_at, 8, 8)?;
        loop {
            let (got, record) = module
                .fill(&EVENT, |module, event| module.try_call("mirror_job_next_event", (job, event)))?;
            if got == 0 {
                break;
            }
            let word = module.call::<_, u32>("mirror_event_name", (record.number("type") as u32,))?;
            let status = module.call::<_, u32>("mirror_status_name", (record.number("status") as u32,))?;
            on_event(&Event { word: module.text(word)?, status: module.text(status)?, record });
        }
        Ok(match polled {
            POLL_CONCLUDED => Progress::Over,
            POLL_BUSY => Progress::Busy,
            _ => Progress::Idle { wake_at: u64::from_le_bytes(at) },
        })
    }

    /// Passes a request to the filter. Its buffer is a block of linear memory, which begins with the list that names it.
    fn pass(&mut self, number: u32, request: &mut Request) -> Result<()> {
        let (length, done, filter) = (request.length(), self.callbacks.done, self.filter);
        let module = &mut self.module;
        let block = module.alloc(LIST + length, 8)?;
        request.block = block;
        let mut list = Record::new(&IOVEC);
        list.set("base", (block + LIST).into());
        list.set("len", length.into());
        let bytes = module.bytes(block, (LIST + length) as usize)?;
        bytes[..LIST as usize].copy_from_slice(&list.bytes);
        let (offset, no_flags) = (request.offset, 0u32);
        let passed = match &request.kind {
            Kind::Read { .. } => {
                module.try_call("mirror_filter_read", (filter, offset, block, 1u32, no_flags, done, number))
            }
            Kind::Write { data } => {
                bytes[LIST as usize..].copy_from_slice(data);
                module.try_call("mirror_filter_write", (filter, offset, block, 1u32, no_flags, done, number))
            }
            Kind::Flush => module.try_call("mirror_filter_flush", (filter, done, number)),
        };
        if let Err(Failure::Refused { .. }) = passed {
            module.free(block, LIST + length, 8)?;
        }
        passed.map(|_| ())
    }
}

fn options(module: &mut Module, settings: &Settings, prepare: u32) -> Result<Record> {
    let (_, mut options) = module.fill(&JOB_OPTIONS, |module, options| {
        module.try_call("mirror_job_options_init", (options, JOB_OPTIONS.size() as u32))
    })?;
    options.set("copy_mode", settings.copy_mode.into());
    options.set("granularity", settings.granularity);
    options.set("buf_size", settings.buf_size);
    options.set("speed", settings.speed);
    options.set("prepare", prepare.into());
    Ok(options)
}
