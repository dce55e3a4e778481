//! Opening a path: what it may name, and which limits and promises follow from what it names.

use super::OpenOptions;
use super::io;
use super::storage::{Direct, FileKind, Storage};
use super::workers::MAX_WORKERS;
use crate::device::Limits;
use crate::error::{Errno, Error, Result};
use crate::range::ByteRange;
use std::fs::{self, File, FileType, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What direct I/O is aligned to if nobody tells: the largest block of today's disks.
const CAUTIOUS_ALIGNMENT: u32 = 4096;
/// The smallest that a disk has.
const SMALLEST_ALIGNMENT: u32 = 512;

/// A path that was opened, and all that is known of what is there.
pub(super) struct Opened {
    pub(super) storage: Storage,
    pub(super) length: u64,
    pub(super) limits: Limits,
    pub(super) identity: (u64, u64),
}

/// Opens or creates what `options` say. Fails without leaving a new file behind.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    check_options(path, options)?;
    let is_new = match fs::metadata(path) {
        Ok(found) => {
            check_type(path, found.file_type())?;
            false
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && options.create.is_some() => true,
        Err(error) => return Err(explain(path, options, &error)),
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .create_new(is_new)
        .open(path)
        .map_err(|error| explain(path, options, &error))?;
    let opened = examine(path, options, file);
    if is_new && opened.is_err() {
        // The error that is being reported matters more than one from this.
        let _ = fs::remove_file(path);
    }
    opened
}

fn check_options(path: &Path, options: &OpenOptions) -> Result<()> {
    if options.create.is_some() && options.read_only {
        return Err(Error::invalid(format!(
            "{}: read-only and to be created: choose one of the two",
            path.display()
        )));
    }
    if options.workers > MAX_WORKERS {
        return Err(Error::invalid(format!(
            "workers {}: must be from 0 (the default) to {MAX_WORKERS}",
            options.workers
        )));
    }
    Ok(())
}

/// Asked before the path is opened, because opening a pipe blocks and opening a tape rewinds it; and again
/// after, because a path can change its meaning.
fn check_type(path: &Path, found: FileType) -> Result<()> {
    if found.is_file() || found.is_block_device() {
        return Ok(());
    }
    let what = if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_char_device() {
        "a character device"
    } else {
        "something"
    };
    Err(Error::invalid(format!("{}: {what}, not a regular file or block device", path.display())))
}

fn examine(path: &Path, options: &OpenOptions, file: File) -> Result<Opened> {
    let failed = |error: std::io::Error| explain(path, options, &error);
    let metadata = file.metadata().map_err(failed)?;
    check_type(path, metadata.file_type())?;
    let kind = kind_of(&file, &metadata);
    if !options.read_only && kind != FileKind::Regular && io::is_write_protected(&file) {
        return Err(Error::new(
            Errno::EROFS,
            format!("{}: the disk is write-protected; open it read-only", path.display()),
        ));
    }
    if let Some(length) = options.create
        && kind == FileKind::Regular
        && metadata.len() == 0
    {
        file.set_len(length).map_err(|error| {
            Error::new(
                io::errno_of(&error),
                format!("{}: can't be made {length} bytes long: {error}", path.display()),
            )
        })?;
    }
    // A block device's metadata doesn't tell its length; its end does.
    let length = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
    let direct = if options.direct { Some(open_directly(path, options, kind, &metadata)?) } else { None };
    let can_punch = !options.read_only && can_punch(&file, kind, &metadata, length);
    let limits = limits(options, kind, direct.as_ref(), can_punch);
    let storage = |file| Storage::new(file, direct, kind, limits.discard_zeroes);
    Ok(Opened {
        length,
        limits: Limits {
            // What was empty has been made longer by nothing but a hole, even where holes can't be asked for.
            reads_zero: kind == FileKind::Regular
                && (metadata.len() == 0 || io::next_data(&file, 0) == Ok(None)),
            ..limits
        },
        identity: identity(kind, &metadata),
        storage: storage(file).map_err(|errno| Error::from(errno).context(path.display()))?,
    })
}

fn kind_of(file: &File, metadata: &Metadata) -> FileKind {
    if metadata.file_type().is_block_device() {
        let logical_block = io::logical_block(file).filter(|size| size.is_power_of_two());
        FileKind::Block { logical_block: u64::from(logical_block.unwrap_or(SMALLEST_ALIGNMENT)) }
    } else {
        FileKind::Regular
    }
}

/// Device and inode number; for a block device its own number, so that every node that names it is the same.
/// No file system has the number that stands for "a block device" here: it is larger than device numbers get.
fn identity(kind: FileKind, metadata: &Metadata) -> (u64, u64) {
    match kind {
        FileKind::Regular => (metadata.dev(), metadata.ino()),
        FileKind::Block { .. } => (u64::MAX, metadata.rdev()),
    }
}

fn limits(options: &OpenOptions, kind: FileKind, direct: Option<&Direct>, can_punch: bool) -> Limits {
    let hint_alignment = match kind {
        // Partial blocks of a file can be zeroed as cheaply as whole ones.
        FileKind::Regular => 0,
        FileKind::Block { logical_block } => logical_block,
    };
    Limits {
        request_alignment: direct.map_or(1, |direct| direct.offset_alignment),
        memory_alignment: direct.map_or(1, |direct| direct.memory_alignment),
        zero_alignment: hint_alignment,
        discard_alignment: hint_alignment,
        read_only: options.read_only,
        cheap_zero: can_punch,
        // A disk promises nothing about what it was told to forget.
        discard_zeroes: can_punch && kind == FileKind::Regular,
        ..Limits::default()
    }
}

/// Whether zeroes can be had without writing them.
///
/// A file is tried beyond its end, where nothing is: `FALLOC_FL_KEEP_SIZE` leaves the length alone, and what
/// doesn't support it says so before it looks at the range.
fn can_punch(file: &File, kind: FileKind, metadata: &Metadata, length: u64) -> bool {
    match kind {
        FileKind::Regular => length
            .checked_next_multiple_of(1 << 20)
            .and_then(|beyond| ByteRange::new(beyond, 1 << 16).ok())
            .is_some_and(|range| io::punch(file, range).is_ok()),
        FileKind::Block { .. } => zeroes_by_command(metadata.rdev()),
    }
}

/// Whether the disk with this number has a command that zeroes, as the kernel tells in `/sys`; of a partition
/// it tells one level up.
#[cfg(target_os = "linux")]
fn zeroes_by_command(rdev: u64) -> bool {
    let disk = format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev));
    ["queue", "../queue"].iter().any(|queue| {
        fs::read_to_string(format!("{disk}/{queue}/write_zeroes_max_bytes"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .is_some_and(|most| most > 0)
    })
}

#[cfg(not(target_os = "linux"))]
fn zeroes_by_command(_: u64) -> bool {
    false
}

fn open_directly(path: &Path, options: &OpenOptions, kind: FileKind, first: &Metadata) -> Result<Direct> {
    let file = open_bypassing_cache(path, options)?;
    let metadata = file.metadata().map_err(|error| explain(path, options, &error))?;
    if (first.dev(), first.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(Error::new(
            Errno::EBUSY,
            format!("{}: was replaced by another file while it was opened: try again", path.display()),
        ));
    }
    let (offset_alignment, memory_alignment) = match (io::direct_alignment(&file), kind) {
        (Some((0, _)), _) => return Err(no_direct(path)),
        (Some(told), _) => told,
        (None, FileKind::Block { logical_block }) => (logical_block as u32, logical_block as u32),
        (None, FileKind::Regular) => {
            let alignment = try_alignment(&file)?;
            (alignment, alignment)
        }
    };
    Ok(Direct { file, offset_alignment, memory_alignment: memory_alignment.max(1) })
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn open_bypassing_cache(path: &Path, options: &OpenOptions) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => no_direct(path),
            _ => explain(path, options, &error),
        })
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn open_bypassing_cache(path: &Path, _: &OpenOptions) -> Result<File> {
    Err(no_direct(path))
}

fn no_direct(path: &Path) -> Error {
    Error::invalid(format!(
        "{}: its file system does not do direct I/O: open it without DIRECT",
        path.display()
    ))
}

/// Finds the alignment with a read, for a kernel that can't be asked: what is too small for it is refused.
fn try_alignment(file: &File) -> Result<u32> {
    let mut buffer =
        super::aligned::AlignedBuffer::new(SMALLEST_ALIGNMENT as usize, CAUTIOUS_ALIGNMENT as usize)?;
    let iov = buffer.buffer_to_fill(SMALLEST_ALIGNMENT as usize);
    // The end of a short file says nothing about alignment.
    let small = io::read(file, &mut [iov], 0).is_ok();
    Ok(if small { SMALLEST_ALIGNMENT } else { CAUTIOUS_ALIGNMENT })
}

/// Says what was wrong with the path, and what to do.
fn explain(path: &Path, options: &OpenOptions, error: &std::io::Error) -> Error {
    let (errno, advice) = match error.raw_os_error() {
        // A name with a zero byte in it, which the system is never asked about.
        None => (Errno::EINVAL, "a name can't have a zero byte in it".to_owned()),
        Some(libc::ENOENT) if options.create.is_some() => {
            (Errno::ENOENT, "no such directory; create it first".to_owned())
        }
        Some(libc::ENOENT) => {
            (Errno::ENOENT, "no such file; create it first, or pass CREATE and its length".to_owned())
        }
        Some(libc::EACCES | libc::EPERM) if options.read_only => {
            (io::errno_of(error), "permission denied; it must be readable".to_owned())
        }
        Some(libc::EACCES | libc::EPERM) => {
            (io::errno_of(error), "permission denied; make it writable, or open it read-only".to_owned())
        }
        Some(libc::EROFS) => (Errno::EROFS, "its file system is read-only; open it read-only".to_owned()),
        Some(libc::EEXIST) => {
            (Errno::EEXIST, "a link to nothing, or appeared while it was being created; try again".to_owned())
        }
        Some(_) => (io::errno_of(error), error.to_string()),
    };
    Error::new(errno, format!("{}: {advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_errno_and_its_advice() {
        let writing = OpenOptions::default();
        let reading = OpenOptions { read_only: true, ..writing };
        let creating = OpenOptions { create: Some(1), ..writing };
        for (options, number, errno, advice) in [
            (&writing, libc::ENOENT, Errno::ENOENT, "pass CREATE"),
            (&creating, libc::ENOENT, Errno::ENOENT, "no such directory"),
            (&writing, libc::EACCES, Errno::EACCES, "open it read-only"),
            (&reading, libc::EACCES, Errno::EACCES, "must be readable"),
            (&writing, libc::EPERM, Errno::EPERM, "open it read-only"),
            (&writing, libc::EROFS, Errno::EROFS, "open it read-only"),
            (&creating, libc::EEXIST, Errno::EEXIST, "try again"),
            (&writing, libc::ENAMETOOLONG, Errno::ENAMETOOLONG, "too long"),
        ] {
            let system = std::io::Error::from_raw_os_error(number);
            let error = explain(Path::new("/some/disk"), options, &system);
            assert_eq!(error.errno(), errno);
            assert!(error.message().starts_with("/some/disk: "), "{error}");
            assert!(error.message().contains(advice), "{error}");
        }
    }
}
