//! What the host knows: its handles, devices, guests' requests and hooks, and what a disk must hold.

use super::program::{Manners, Step};
use blkmirror::capi::*;
use std::cell::RefCell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Device,
    Filter,
    Job,
}

#[derive(Clone, Copy, Debug)]
struct Handle {
    pointer: usize,
    kind: Kind,
    live: bool,
    /// Which device, filter or job.
    index: usize,
}

/// A request that a device has said is pending.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) token: u64,
    pub(super) op: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) iov: Vec<(usize, usize)>,
}

pub(super) struct Device {
    /// `None` for a built-in one.
    pub(super) manners: Option<Manners>,
    pub(super) honest: bool,
    pub(super) limits: Option<mirror_device_limits>,
    /// The handle that it was made with; 0 once that is freed.
    pub(super) pointer: usize,
    pub(super) closed: u32,
    pub(super) next: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) pending: Vec<Request>,
    /// Tokens that were used up.
    pub(super) stale: Vec<u64>,
    /// It does what it is told from now on.
    pub(super) draining: bool,
    /// Filters and jobs that ever used it.
    pub(super) users: u32,
}

/// What a filter's disk holds, byte by byte.
pub(super) struct Disk {
    pub(super) trusted: bool,
    /// The devices that it was or may be on.
    pub(super) devices: Vec<usize>,
    pub(super) known: Vec<Option<u8>>,
    /// Counts whatever may have changed the byte.
    pub(super) changes: Vec<u32>,
    /// Changes of the byte that have begun and aren't done.
    pub(super) under_way: Vec<u32>,
    pub(super) tickets: Vec<u64>,
}

pub(super) struct Guest {
    pub(super) filter: usize,
    pub(super) kind: u32,
    pub(super) offset: usize,
    pub(super) value: u8,
    /// Freed when it is done, so that a late use is seen.
    pub(super) buffer: Vec<u8>,
    /// For a read what was known when it began, for a write which change it is.
    pub(super) changes: Vec<u32>,
    pub(super) accepted: bool,
    pub(super) told: u32,
    pub(super) then: u8,
}

/// A host's hook with its pointer.
pub(super) struct Hook {
    pub(super) closed: u32,
    pub(super) calls: u8,
    pub(super) prepare: super::program::Answer,
}

pub(super) struct World {
    pub(super) inner: Vec<Step>,
    pub(super) depth: u32,
    pub(super) calls: u32,
    pub(super) now: u64,
    handles: Vec<Handle>,
    pub(super) devices: Vec<Device>,
    pub(super) disks: Vec<Disk>,
    pub(super) guests: Vec<Guest>,
    pub(super) hooks: Vec<Hook>,
    jobs: usize,
    /// Jobs that are being polled, by their handle.
    pub(super) polling: Vec<usize>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new(Vec::new()));
}

pub(super) fn set(world: World) {
    WORLD.with(|cell| *cell.borrow_mut() = world);
}

/// The world, for a moment in which the library isn't called.
pub(super) fn with<R>(act: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with(|cell| act(&mut cell.borrow_mut()))
}

/// Foreign memory that is passed as a handle.
static FOREIGN: [u64; 4] = [0; 4];

impl World {
    pub(super) fn new(inner: Vec<Step>) -> Self {
        Self {
            inner,
            depth: 0,
            calls: 0,
            now: 1,
            handles: Vec::new(),
            devices: Vec::new(),
            disks: Vec::new(),
            guests: Vec::new(),
            hooks: Vec::new(),
            jobs: 0,
            polling: Vec::new(),
        }
    }

    /// Mostly a live handle of the kind; of 16, one is any handle, one NULL or foreign.
    pub(super) fn pick(&self, kind: Kind, number: u8) -> (usize, bool) {
        let which = usize::from(number >> 4);
        let any = match number & 15 {
            15 => {
                return (
                    if which.is_multiple_of(2) { 0 } else { FOREIGN.as_ptr() as usize + which % 3 },
                    false,
                );
            }
            14 => self.handles.iter().rev().nth(which),
            _ => {
                let live = self.handles.iter().filter(|handle| handle.kind == kind && handle.live);
                let count = live.clone().count();
                live.clone().nth(usize::from(number) % count.max(1))
            }
        };
        any.map_or((0, false), |handle| (handle.pointer, handle.live && handle.kind == kind))
    }

    fn add(&mut self, pointer: usize, kind: Kind, index: usize) {
        // The header of a freed handle may be used again after many others.
        self.handles.retain(|handle| handle.pointer != pointer);
        self.handles.push(Handle { pointer, kind, live: true, index });
    }

    pub(super) fn add_device(&mut self, pointer: *mut mirror_device, index: usize) {
        self.devices[index].pointer = pointer as usize;
        self.add(pointer as usize, Kind::Device, index);
    }

    pub(super) fn add_built_in(&mut self, pointer: *mut mirror_device, honest: bool) {
        self.devices.push(Device {
            manners: None,
            honest,
            limits: None,
            pointer: 0,
            closed: 1,
            next: 0,
            bytes: Vec::new(),
            pending: Vec::new(),
            stale: Vec::new(),
            draining: false,
            users: 0,
        });
        self.add(pointer as usize, Kind::Device, self.devices.len() - 1);
    }

    /// Another handle to a device, which isn't looked up: whoever uses it is not trusted.
    pub(super) fn add_reference(&mut self, pointer: *mut mirror_device) {
        self.add_built_in(pointer, false);
    }

    pub(super) fn add_filter(&mut self, pointer: *mut mirror_filter, device: usize, length: usize) {
        let source = self.use_device(device);
        let mut disk = Disk {
            trusted: source && length <= 1 << 20,
            devices: vec![device],
            known: Vec::new(),
            changes: Vec::new(),
            under_way: Vec::new(),
            tickets: Vec::new(),
        };
        if disk.trusted {
            let bytes = &self.devices[device].bytes;
            disk.known = if bytes.is_empty() {
                vec![Some(0); length]
            } else {
                bytes.iter().map(|byte| Some(*byte)).collect()
            };
            disk.changes = vec![0; length];
            disk.under_way = vec![0; length];
        }
        self.disks.push(disk);
        self.add(pointer as usize, Kind::Filter, self.disks.len() - 1);
    }

    pub(super) fn add_job(&mut self, pointer: *mut mirror_job) {
        self.jobs += 1;
        self.add(pointer as usize, Kind::Job, self.jobs - 1);
    }

    /// Takes note of another user of a device; whether it is the first of an honest one.
    pub(super) fn use_device(&mut self, index: usize) -> bool {
        self.devices[index].users += 1;
        self.devices[index].users == 1 && self.devices[index].honest
    }

    /// Whether what this disk holds is known. Storage with other users isn't looked after.
    pub(super) fn is_trusted(&self, disk: usize) -> bool {
        let disk = &self.disks[disk];
        disk.trusted && disk.devices.iter().all(|device| self.devices[*device].users == 1)
    }

    pub(super) fn index(&self, pointer: usize) -> Option<usize> {
        Some(self.handles.iter().find(|handle| handle.pointer == pointer)?.index)
    }

    pub(super) fn live(&self, kind: Kind) -> Vec<usize> {
        let live = self.handles.iter().filter(|handle| handle.live && handle.kind == kind);
        live.map(|handle| handle.pointer).collect()
    }

    pub(super) fn is_live(&self, pointer: usize) -> bool {
        self.handles.iter().any(|handle| handle.pointer == pointer && handle.live)
    }

    /// The handle is gone; which of its kind it was, if it was one.
    pub(super) fn bury(&mut self, pointer: usize, kind: Kind) -> Option<usize> {
        let handle =
            self.handles.iter_mut().find(|handle| handle.pointer == pointer && handle.kind == kind)?;
        std::mem::replace(&mut handle.live, false).then_some(handle.index)
    }

    pub(super) fn is(&self, pointer: usize, kind: Kind) -> bool {
        self.handles.iter().any(|handle| handle.pointer == pointer && handle.kind == kind)
    }

    /// The handle is still there.
    pub(super) fn dig_up(&mut self, pointer: usize) {
        self.handles
            .iter_mut()
            .filter(|handle| handle.pointer == pointer)
            .for_each(|handle| handle.live = true);
    }

    /// A token of this device, pending or used up.
    pub(super) fn some_token(&self, pointer: usize, which: u8) -> u64 {
        let Some(device) = self.devices.iter().find(|device| device.pointer == pointer) else {
            return u64::from(which);
        };
        let which = usize::from(which);
        let pending = device.pending.iter().map(|request| request.token);
        let tokens: Vec<_> = pending.chain(device.stale.iter().rev().take(8).copied()).collect();
        tokens.get(which % tokens.len().max(1)).copied().unwrap_or(which as u64)
    }
}

/// When everything was put away: all is closed and told, once.
pub(super) fn check_end() {
    with(|world| {
        for (index, device) in world.devices.iter().enumerate() {
            assert_eq!(device.closed, 1, "device {index} is closed {} times", device.closed);
        }
        for (index, hook) in world.hooks.iter().enumerate() {
            assert_eq!(hook.closed, 1, "hook {index} is closed {} times", hook.closed);
        }
        for (index, guest) in world.guests.iter().enumerate() {
            let expected = u32::from(guest.accepted);
            assert_eq!(guest.told, expected, "guest request {index} is told {} times", guest.told);
        }
    });
}
