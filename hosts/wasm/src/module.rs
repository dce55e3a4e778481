//! The module in its engine: calls by name, memory, and functions of the host that the module calls.

use crate::disks::Host;
use crate::layout::{Layout, Record};
use std::fmt;
use std::path::Path;
use wasmtime::{
    Config, Engine, Extern, Func, Instance, Memory, Ref, Store, Table, TypedFunc, WasmParams, WasmResults,
};

/// Why a call came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// The library refused, and lives.
    Refused {
        /// Linux's number.
        errno: i32,
        /// Why, in words.
        text: String,
    },
    /// The module trapped, ran out of fuel or broke its word: it is not called again.
    Lost(wasmtime::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { text, .. } => f.write_str(text),
            Self::Lost(error) => write!(f, "the module is lost: {error:#}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        Self::Lost(error)
    }
}

/// What a call comes to.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The compiled module, from which any number of instances are made.
pub struct Program {
    engine: Engine,
    module: wasmtime::Module,
    has_fuel: bool,
}

impl Program {
    /// Compiles the module. With `has_fuel` its instances count what they do, and can be stopped.
    pub fn load(path: &Path, has_fuel: bool) -> Result<Self> {
        let mut config = Config::new();
        config.consume_fuel(has_fuel);
        let engine = Engine::new(&config)?;
        let module = wasmtime::Module::from_file(&engine, path)?;
        Ok(Self { engine, module, has_fuel })
    }
}

/// An instance of the module: one world of devices, filters and jobs.
pub struct Module {
    store: Store<Host>,
    instance: Instance,
    memory: Memory,
    table: Table,
}

impl Module {
    /// An instance that may have as much memory as `host.limits` allow.
    pub fn new(program: &Program, host: Host) -> Result<Self> {
        let mut store = Store::new(&program.engine, host);
        store.limiter(|host| &mut host.limits);
        if program.has_fuel {
            store.set_fuel(u64::MAX)?;
        }
        // It asks for nothing.
        let instance = Instance::new(&mut store, &program.module, &[])?;
        let memory = instance.get_memory(&mut store, "memory");
        let table = instance.get_table(&mut store, "__indirect_function_table");
        let (Some(memory), Some(table)) = (memory, table) else {
            return Err(Failure::Lost(wasmtime::Error::msg("the module exports no memory or no table")));
        };
        store.data_mut().memory = Some(memory);
        Ok(Self { store, instance, memory, table })
    }

    /// From here on it does so much and is then stopped.
    pub fn set_fuel(&mut self, fuel: u64) -> Result<()> {
        Ok(self.store.set_fuel(fuel)?)
    }

    /// How much is left of it.
    pub fn fuel(&self) -> u64 {
        self.store.get_fuel().unwrap_or(0)
    }

    /// What the store holds for us.
    pub fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Takes the host back. The module is gone, and its memory with it.
    #[must_use]
    pub fn into_host(self) -> Host {
        self.store.into_data()
    }

    /// How much linear memory there is now.
    pub fn memory_size(&self) -> usize {
        self.memory.data_size(&self.store)
    }

    /// Calls a function of the header.
    pub fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, parameters: P) -> Result<R> {
        let function = self.instance.get_typed_func::<P, R>(&mut self.store, name)?;
        Ok(function.call(&mut self.store, parameters)?)
    }

    /// A function of the header, for who calls it often.
    pub fn function<P: WasmParams, R: WasmResults>(&mut self, name: &str) -> Result<TypedFunc<P, R>> {
        Ok(self.instance.get_typed_func::<P, R>(&mut self.store, name)?)
    }

    /// Calls it.
    pub fn call_function<P: WasmParams, R: WasmResults>(
        &mut self,
        function: &TypedFunc<P, R>,
        parameters: P,
    ) -> Result<R> {
        Ok(function.call(&mut self.store, parameters)?)
    }

    /// Calls a function that answers a number or `-errno`.
    pub fn try_call<P: WasmParams>(&mut self, name: &str, parameters: P) -> Result<i32> {
        match self.call::<P, i32>(name, parameters)? {
            answer if answer < 0 => Err(Failure::Refused { errno: -answer, text: self.last_error()? }),
            answer => Ok(answer),
        }
    }

    /// Calls a function whose last parameter is where it stores the handle that it makes.
    pub fn make(&mut self, call: impl FnOnce(&mut Self, u32) -> Result<i32>) -> Result<u32> {
        let out = self.alloc(4, 4)?;
        let made = call(self, out).and_then(|_| {
            let bytes = self.bytes(out, 4)?;
            Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        });
        if matches!(made, Err(Failure::Lost(_))) {
            return made;
        }
        self.free(out, 4, 4)?;
        made
    }

    /// What was wrong with the last call that was refused.
    pub fn last_error(&mut self) -> Result<String> {
        let at = self.call::<(), u32>("mirror_last_error", ())?;
        self.text(at)
    }

    /// Room in linear memory.
    pub fn alloc(&mut self, size: u32, align: u32) -> Result<u32> {
        match self.call::<_, u32>("mirror_wasm_alloc", (size, align))? {
            0 => Err(Failure::Refused { errno: crate::constants::ENOMEM, text: self.last_error()? }),
            block => Ok(block),
        }
    }

    /// Gives room back, with the size and alignment that it was asked for.
    pub fn free(&mut self, block: u32, size: u32, align: u32) -> Result<()> {
        self.call("mirror_wasm_free", (block, size, align))
    }

    /// A part of linear memory.
    pub fn bytes(&mut self, at: u32, length: usize) -> Result<&mut [u8]> {
        let memory = self.memory.data_mut(&mut self.store);
        let beyond = || wasmtime::Error::msg("an address beyond linear memory");
        let end = (at as usize).checked_add(length).ok_or_else(beyond)?;
        Ok(memory.get_mut(at as usize..end).ok_or_else(beyond)?)
    }

    /// A text that a NUL ends.
    pub fn text(&mut self, at: u32) -> Result<String> {
        let memory = self.memory.data(&self.store).get(at as usize..).unwrap_or_default();
        let text = memory.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Puts a structure into linear memory for as long as `call` needs it; says what is there afterwards.
    pub fn with<T>(
        &mut self,
        record: &Record,
        call: impl FnOnce(&mut Self, u32) -> Result<T>,
    ) -> Result<(T, Record)> {
        let size = record.bytes.len() as u32;
        let at = self.alloc(size, 8)?;
        self.bytes(at, record.bytes.len())?.copy_from_slice(&record.bytes);
        let result = call(self, at);
        if let Err(Failure::Lost(_)) = result {
            // Nothing is given back to a module that is lost.
            return result.map(|value| (value, record.clone()));
        }
        let mut after = record.clone();
        after.bytes.copy_from_slice(self.bytes(at, record.bytes.len())?);
        self.free(at, size, 8)?;
        Ok((result?, after))
    }

    /// A structure that a call fills in.
    pub fn fill(
        &mut self,
        layout: &'static Layout,
        call: impl FnOnce(&mut Self, u32) -> Result<i32>,
    ) -> Result<(i32, Record)> {
        self.with(&Record::new(layout), call)
    }

    /// Adds a function of the host to the module's table; what C calls a pointer to it is its place there.
    pub fn add_function(&mut self, make: impl FnOnce(&mut Store<Host>) -> Func) -> Result<u32> {
        let function = make(&mut self.store);
        let place = self.table.grow(&mut self.store, 1, Ref::Func(Some(function)))?;
        Ok(place as u32)
    }

    /// Whether there is such an export.
    pub fn has(&mut self, name: &str) -> bool {
        matches!(self.instance.get_export(&mut self.store, name), Some(Extern::Func(_)))
    }
}
