//! A device that tells very many small extents, where there is little memory to keep them in: what there is no room for is
//! asked for again, or copied; nothing is lost, and nothing traps.

mod common;

use blkmirror_wasm::constants::{COPY_BACKGROUND, ENOMEM, SYNC_FULL, SYNC_TOP};
use blkmirror_wasm::layout::EXTENT;
use blkmirror_wasm::module::Program;
use common::device::{Bytes, Manner, device};
use common::program;
use common::world::{Case, World, check};
use std::sync::{Arc, Mutex};

const MIB: usize = 1 << 20;
const SECTOR: usize = 512;

/// Data and zeroes, sector by sector.
fn striped(length: usize) -> Vec<u8> {
    (0..length).map(|at| if (at / SECTOR).is_multiple_of(2) { (at / 1024) as u8 | 1 } else { 0 }).collect()
}

fn case(sync: u64, buf_size: u64) -> Case {
    Case {
        length: 4 << 20,
        keeps: true,
        granularity: SECTOR as u64,
        buf_size,
        copy_mode: COPY_BACKGROUND,
        in_flight: 16,
        flags: 0,
        max_io: 0,
        sync,
        writes: 0,
    }
}

/// Takes what is left of memory, but for so much, which is in one piece.
fn take_all(world: &mut World, but: u32) {
    let kept = (but > 0).then(|| check(world.module.alloc(but, 8), "alloc")).flatten();
    for size in [1 << 20, 65536, 4096, 256, 16] {
        while check(world.module.alloc(size, 8), "alloc").is_some() {}
    }
    if let Some(block) = kept {
        world.module.free(block, but, 8).expect("no trap");
    }
}

/// Mirrors a striped disk. Memory is what the limit says; from the job's start on, if `left` says so, only so much more is
/// to be had than the library has by then. Whether it ended well; the copy is equal then.
fn mirror(program: &Program, case: &Case, limit: usize, left: Option<u32>) -> Option<bool> {
    let mut world = World::new(program, limit);
    let content = striped(case.length as usize);
    // What is not allocated is not copied from the top: there the target is a copy of the base.
    let before = if case.sync == SYNC_TOP { 0 } else { 9 };
    let disks: [Bytes; 2] =
        [content.clone(), vec![before; content.len()]].map(|bytes| Arc::new(Mutex::new(bytes)));
    let manner = Manner { clears: true, extent: SECTOR as u64, ..Manner::default() };
    let mut make = |disk: &Bytes| check(device(&mut world.module, disk, manner), "device");
    let (source, target) = (make(&disks[0])?, make(&disks[1])?);
    let filter = world.filter(source)?;
    let job = world.job(filter, target, case)?;
    if let Some(left) = left {
        take_all(&mut world, left);
    }
    check(world.module.try_call("mirror_job_start", (job,)), "start")?;
    let ended = world.drive(filter, job, case);
    assert!(ended.is_none_or(|result| [0, -ENOMEM].contains(&result)), "{ended:?}");
    if ended == Some(0) {
        let same = *disks[0].lock().expect("one thread") == *disks[1].lock().expect("one thread");
        assert!(same && *disks[1].lock().expect("one thread") == content, "{case:?} in {limit}, {left:?}");
    }
    world.module.try_call("mirror_job_free", (job,)).expect("a job can always be freed");
    world.serves(filter, "after the job");
    Some(ended == Some(0))
}

#[test]
fn a_mirror_of_a_disk_in_stripes_is_equal_or_has_no_memory() {
    let program = program(false);
    let mut all = 0;
    for case in [case(SYNC_FULL, 64 << 10), case(SYNC_FULL, 4 << 20), case(SYNC_TOP, 1 << 20)] {
        let (mut limit, mut none, mut well) = (MIB, 0, 0);
        while well < 3 {
            match mirror(&program, &case, limit, None) {
                Some(true) => well += 1,
                _ => none += 1,
            }
            limit += 64 << 10;
            assert!(limit < 32 * MIB, "{case:?}: no end");
        }
        println!("{case:?}: {none} times there was too little, at last {} KiB were enough", limit >> 10);
        all += none;
    }
    assert!(all > 20, "only {all} times there was too little");
}

#[test]
fn what_is_told_when_all_memory_is_taken_is_copied_all_the_same() {
    let program = program(false);
    for case in [case(SYNC_FULL, 64 << 10), case(SYNC_FULL, 2 << 20), case(SYNC_TOP, 64 << 10)] {
        let mut well = 0;
        for left in [0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512] {
            let ended = mirror(&program, &case, 16 * MIB, Some(left << 10));
            well += u32::from(ended.expect("it is made"));
        }
        println!("{case:?}: {well} of 12 ended well");
        assert!(well > 0, "{case:?}");
    }
}

/// The plans of several jobs are more than the reserve, which is all that there is.
#[test]
fn what_several_jobs_are_told_when_all_memory_is_taken_is_copied_all_the_same() {
    let program = program(false);
    let mut world = World::new(&program, 32 * MIB);
    let case = Case { length: 8 << 20, ..case(SYNC_FULL, 2 << 20) };
    let content = striped(case.length as usize);
    let manner = Manner { clears: true, extent: SECTOR as u64, ..Manner::default() };
    let mut jobs = Vec::new();
    for _ in 0..5 {
        let disks: [Bytes; 2] =
            [content.clone(), vec![9; content.len()]].map(|bytes| Arc::new(Mutex::new(bytes)));
        let [source, target] =
            disks.each_ref().map(|disk| device(&mut world.module, disk, manner).expect("room at the start"));
        let filter = world.filter(source).expect("room at the start");
        let job = world.job(filter, target, &case).expect("room at the start");
        jobs.push((job, filter, disks));
    }
    take_all(&mut world, 0);
    for (job, ..) in &jobs {
        check(world.module.try_call("mirror_job_start", (*job,)), "start");
    }
    for now in 1..3 {
        for (job, ..) in &jobs {
            let out = world.out;
            check(world.module.try_call("mirror_job_poll", (*job, now * 1_000_000_u64, out)), "poll");
        }
    }
    let mut well = 0;
    for (job, filter, disks) in jobs {
        let ended = world.drive(filter, job, &case);
        assert!(ended.is_none_or(|result| [0, -ENOMEM].contains(&result)), "{ended:?}");
        well += u32::from(ended == Some(0));
        assert!(ended != Some(0) || *disks[1].lock().expect("one thread") == content);
        world.module.try_call("mirror_job_free", (job,)).expect("a job can always be freed");
        world.serves(filter, "after the job");
    }
    println!("{well} of 5 jobs ended well");
    assert!(well > 0);
}

#[test]
fn a_guest_that_asks_is_answered_short_where_there_is_no_memory() {
    const ROOM: u32 = 1024;
    let program = program(false);
    let content = striped(4 << 20);
    let mut counts = Vec::new();
    for left in (0..=40_u32).map(|kib| kib << 10) {
        let mut world = World::new(&program, 2 * MIB);
        let disk: Bytes = Arc::new(Mutex::new(content.clone()));
        let manner = Manner { extent: SECTOR as u64, ..Manner::default() };
        let source = check(device(&mut world.module, &disk, manner), "device").expect("room at the start");
        let filter = world.filter(source).expect("room at the start");
        let list = world.module.alloc(ROOM * EXTENT.size() as u32, 8).expect("room at the start");
        world.serves(filter, "at first");
        take_all(&mut world, left);
        let (out, done) = (world.out, world.done);
        let mut at = 0;
        // What an answer leaves out is asked for again, and all of it comes to be told.
        while at < content.len() {
            world.finished += 1;
            let rest = (content.len() - at) as u64;
            let asked = (filter, at as u64, rest, list, ROOM, out, done, world.finished);
            let accepted = check(world.module.try_call("mirror_filter_extents", asked), "extents");
            assert!(accepted.is_some(), "a guest is refused");
            let number = world.finished;
            assert_eq!(world.outcomes().get(&number), Some(&0));
            let count =
                u32::from_le_bytes(world.module.bytes(out, 4).expect("memory").try_into().expect("four"));
            assert!((1..=ROOM).contains(&count), "{count} extents");
            counts.push(count);
            for index in 0..count {
                let entry = world.module.bytes(list + index * EXTENT.size() as u32, 12).expect("memory");
                let length = u64::from_le_bytes(entry[..8].try_into().expect("eight")) as usize;
                let flags = u32::from_le_bytes(entry[8..].try_into().expect("four"));
                let is_zero = content[at..at + length].iter().all(|byte| *byte == 0);
                assert_eq!(flags & 2 != 0, is_zero, "at {at}");
                at += length;
            }
        }
        assert_eq!(at, content.len());
        world.serves(filter, "afterwards");
    }
    println!("answers of {:?} to {:?} extents", counts.iter().min(), counts.iter().max());
    assert!(counts.contains(&ROOM) && counts.iter().any(|count| *count < ROOM), "{counts:?}");
}
