//! How the structures of `blkmirror.h` lie in linear memory: pointers and `size_t` have 32 bits there, offsets and lengths
//! 64. A test holds this against the header as a compiler for WebAssembly reads it.

/// What a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `size_t`, an address, or a function's place in the table.
    Word,
    /// `uint32_t` or `int`.
    U32,
    /// `uint64_t`.
    U64,
    /// `bool`.
    Bool,
    /// `char[]`: text that a NUL ends.
    Text(usize),
    /// `mirror_counter`.
    Counter,
}

impl Type {
    /// How many bytes, and on multiples of how many.
    #[must_use]
    pub const fn size_and_alignment(self) -> (usize, usize) {
        match self {
            Self::Word | Self::U32 => (4, 4),
            Self::U64 => (8, 8),
            Self::Bool => (1, 1),
            Self::Text(length) => (length, 1),
            Self::Counter => (24, 8),
        }
    }
}

/// A structure: its name and its fields in order.
#[derive(Debug)]
pub struct Layout {
    /// Its name in the header.
    pub name: &'static str,
    /// Its fields in order, by their names.
    pub fields: &'static [(&'static str, Type)],
}

impl Layout {
    /// Each field with its offset, as C lays them out.
    pub fn offsets(&self) -> impl Iterator<Item = (&'static str, Type, usize)> {
        self.fields.iter().scan(0_usize, |end, &(name, kind)| {
            let (size, alignment) = kind.size_and_alignment();
            let offset = end.next_multiple_of(alignment);
            *end = offset + size;
            Some((name, kind, offset))
        })
    }

    /// `sizeof`.
    #[must_use]
    pub fn size(&self) -> usize {
        let alignment = self.fields.iter().map(|(_, kind)| kind.size_and_alignment().1).max().unwrap_or(1);
        let end = self.offsets().last().map_or(0, |(_, kind, offset)| offset + kind.size_and_alignment().0);
        end.next_multiple_of(alignment)
    }

    fn find(&self, field: &str) -> (Type, usize) {
        let found = self.offsets().find(|(name, ..)| *name == field);
        let (_, kind, offset) = found.unwrap_or_else(|| panic!("{} has no field {field}", self.name));
        (kind, offset)
    }
}

/// A structure's bytes, to be written to linear memory or read from it. A field that there isn't is this program's mistake.
#[derive(Clone, Debug)]
pub struct Record {
    layout: &'static Layout,
    /// As it lies in linear memory.
    pub bytes: Vec<u8>,
}

impl Record {
    /// All zero, but for `struct_size`.
    #[must_use]
    pub fn new(layout: &'static Layout) -> Self {
        let mut record = Self { layout, bytes: vec![0; layout.size()] };
        if layout.fields[0].0 == "struct_size" {
            record.set("struct_size", layout.size() as u64);
        }
        record
    }

    /// Sets a number, an address or a place in the table.
    pub fn set(&mut self, field: &str, value: u64) {
        let (kind, offset) = self.layout.find(field);
        let (size, _) = kind.size_and_alignment();
        self.bytes[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    /// A number.
    #[must_use]
    pub fn number(&self, field: &str) -> u64 {
        let (kind, offset) = self.layout.find(field);
        let (size, _) = kind.size_and_alignment();
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.bytes[offset..offset + size]);
        u64::from_le_bytes(value)
    }

    /// An `int`.
    #[must_use]
    pub fn int(&self, field: &str) -> i32 {
        self.number(field) as u32 as i32
    }

    /// A text that a NUL ends.
    #[must_use]
    pub fn text(&self, field: &str) -> String {
        let (kind, offset) = self.layout.find(field);
        let bytes = &self.bytes[offset..offset + kind.size_and_alignment().0];
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    }
}

use Type::{Bool, Counter, Text, U32, U64, Word};

/// `mirror_iovec` of the header.
pub static IOVEC: Layout = Layout { name: "mirror_iovec", fields: &[("base", Word), ("len", Word)] };

/// `mirror_device_ops` of the header.
pub static DEVICE_OPS: Layout = Layout {
    name: "mirror_device_ops",
    fields: &[
        ("struct_size", Word),
        ("read", Word),
        ("write", Word),
        ("zero", Word),
        ("discard", Word),
        ("flush", Word),
        ("extents", Word),
        ("truncate", Word),
        ("cancel", Word),
        ("poll", Word),
        ("close", Word),
        ("copy", Word),
    ],
};

/// `mirror_device_limits` of the header.
pub static DEVICE_LIMITS: Layout = Layout {
    name: "mirror_device_limits",
    fields: &[
        ("struct_size", Word),
        ("length", U64),
        ("request_alignment", U32),
        ("memory_alignment", U32),
        ("max_iov", U32),
        ("flags", U32),
        ("max_transfer", U64),
        ("max_zero", U64),
        ("max_discard", U64),
        ("zero_alignment", U64),
        ("discard_alignment", U64),
        ("cluster_size", U64),
    ],
};

/// `mirror_check_options` of the header.
pub static CHECK_OPTIONS: Layout = Layout {
    name: "mirror_check_options",
    fields: &[
        ("struct_size", Word),
        ("flags", U32),
        ("reserved", U32),
        ("seed", U64),
        ("max_bytes", U64),
        ("timeout_ns", U64),
    ],
};

/// `mirror_check_finding` of the header.
pub static CHECK_FINDING: Layout = Layout {
    name: "mirror_check_finding",
    fields: &[
        ("struct_size", Word),
        ("rule", Word),
        ("spec", Word),
        ("text", Word),
        ("asked", Word),
        ("expected", Word),
        ("came", Word),
        ("line", Word),
        ("operation", U32),
        ("flags", U32),
        ("offset", U64),
        ("length", U64),
    ],
};

/// `mirror_extent` of the header.
pub static EXTENT: Layout =
    Layout { name: "mirror_extent", fields: &[("length", U64), ("flags", U32), ("reserved", U32)] };

/// `mirror_prepare_info` of the header.
pub static PREPARE_INFO: Layout = Layout {
    name: "mirror_prepare_info",
    fields: &[("struct_size", Word), ("sync", U32), ("backing_mode", U32)],
};

/// `mirror_job_options` of the header.
pub static JOB_OPTIONS: Layout = Layout {
    name: "mirror_job_options",
    fields: &[
        ("struct_size", Word),
        ("id", Word),
        ("kind", U32),
        ("sync", U32),
        ("copy_mode", U32),
        ("backing_mode", U32),
        ("on_source_error", U32),
        ("on_target_error", U32),
        ("flags", U32),
        ("max_in_flight", U32),
        ("granularity", U64),
        ("buf_size", U64),
        ("max_io", U64),
        ("speed", U64),
        ("pass_interval_ns", U64),
        ("guest_first_io", U64),
        ("guest_first_in_flight", U32),
        ("reserved", U32),
        ("replaces", Word),
        ("wake", Word),
        ("prepare", Word),
        ("clock", Word),
        ("opaque", Word),
        ("closed", Word),
    ],
};

/// `mirror_counter` of the header.
pub static COUNTER: Layout =
    Layout { name: "mirror_counter", fields: &[("ops", U64), ("bytes", U64), ("errors", U64)] };

/// `mirror_job_info` of the header.
pub static JOB_INFO: Layout = Layout {
    name: "mirror_job_info",
    fields: &[
        ("struct_size", Word),
        ("id", Text(128)),
        ("message", Text(256)),
        ("kind", U32),
        ("status", U32),
        ("copy_mode", U32),
        ("io_status", U32),
        ("busy", Bool),
        ("paused", Bool),
        ("ready", Bool),
        ("actively_synced", Bool),
        ("result", U32),
        ("speed", U64),
        ("done", U64),
        ("total", U64),
        ("dirty", U64),
        ("prepared", U64),
        ("in_flight_bytes", U64),
        ("in_flight_ops", U32),
        ("guests", U32),
        ("passes", U64),
        ("reads", Counter),
        ("writes", Counter),
        ("zeroes", Counter),
        ("discards", Counter),
        ("flushes", Counter),
        ("active", Counter),
        ("skipped_zeroes", U64),
        ("guest_writes", U64),
        ("errors", U64),
        ("events_dropped", U64),
        ("dirty_rate", U64),
        ("copy_rate", U64),
        ("eta_ns", U64),
        ("granularity", U64),
        ("bounce_copies", U64),
        ("copies", Counter),
    ],
};

/// `mirror_event` of the header.
pub static EVENT: Layout = Layout {
    name: "mirror_event",
    fields: &[
        ("struct_size", Word),
        ("type", U32),
        ("status", U32),
        ("result", U32),
        ("operation", U32),
        ("side", U32),
        ("action", U32),
        ("offset", U64),
        ("length", U64),
    ],
};

/// All of them, in the header's order.
pub static ALL: [&Layout; 11] = [
    &IOVEC,
    &DEVICE_OPS,
    &DEVICE_LIMITS,
    &CHECK_OPTIONS,
    &CHECK_FINDING,
    &EXTENT,
    &PREPARE_INFO,
    &JOB_OPTIONS,
    &COUNTER,
    &JOB_INFO,
    &EVENT,
];

/// All of them as a table for people: what docs/WEBASSEMBLY.md shows.
#[must_use]
pub fn table() -> String {
    let mut table = String::new();
    for layout in ALL {
        table += &format!("\n| `{}` | {} bytes | |\n| --- | --- | --- |\n", layout.name, layout.size());
        for (name, kind, offset) in layout.offsets() {
            let word = match kind {
                Type::Word => "word".to_owned(),
                Type::U32 => "32 bits".to_owned(),
                Type::U64 => "64 bits".to_owned(),
                Type::Bool => "byte, 0 or 1".to_owned(),
                Type::Text(length) => format!("text, {length} bytes"),
                Type::Counter => "`mirror_counter`".to_owned(),
            };
            table += &format!("| `{name}` | {offset} | {word} |\n");
        }
    }
    table
}
