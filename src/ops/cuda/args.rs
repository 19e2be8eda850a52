//! The argument structs of kernels, and how they are tied to the text of the .cu files.
//!
//! A kernel takes one struct by value. [`bindings!`] declares its mirror in Rust: the field types say what
//! they are called in CUDA (`In<Act>` is `const act_t*`), so that a test can compare each struct with the
//! kernel's source, field by field, without a GPU.

use std::marker::PhantomData;

use super::sources::Source;

/// A field of an argument struct.
pub trait Field: Copy {
    /// The field's type in CUDA: `const act_t*`, `u32`.
    fn c_type() -> String;
}

/// The element behind a pointer.
pub trait Element: 'static {
    const C_NAME: &'static str;
}

macro_rules! elements {
    ($($(#[$doc:meta])* $name:ident = $c:literal),* $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl Element for $name {
                const C_NAME: &'static str = $c;
            }
        )*
    };
}

elements! {
    /// The type of weights and activations: bf16 or float.
    Act = "act_t",
    /// bf16 whatever the precision: attention.
    Bf16 = "bf16",
    /// A token id.
    U16 = "u16",
    U8 = "u8",
    U32 = "u32",
    F32 = "float",
    /// Two floats beside each other.
    F32x2 = "float2",
    F64 = "double",
}

/// A pointer to what a kernel reads.
#[repr(transparent)]
pub struct In<T>(u64, PhantomData<T>);
/// A pointer to what a kernel writes.
#[repr(transparent)]
pub struct Out<T>(u64, PhantomData<T>);

macro_rules! pointer {
    ($name:ident, $prefix:literal) => {
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<T> {}
        impl<T> $name<T> {
            /// The device address; the kernel does not check it.
            pub fn at(address: u64) -> Self {
                Self(address, PhantomData)
            }
            pub fn null() -> Self {
                Self::at(0)
            }
        }
        impl<T: Element> Field for $name<T> {
            fn c_type() -> String {
                format!(concat!($prefix, "{}*"), T::C_NAME)
            }
        }
    };
}

pointer!(In, "const ");
pointer!(Out, "");

macro_rules! scalar_fields {
    ($($type:ty = $c:literal),*) => { $(impl Field for $type { fn c_type() -> String { $c.to_owned() } })* };
}

scalar_fields!(u32 = "u32", u64 = "u64", i32 = "int", f32 = "float");

impl<T: Field, const N: usize> Field for [T; N] {
    fn c_type() -> String {
        format!("{}[{N}]", T::c_type())
    }
}

/// One field as Rust lays it out.
#[derive(Debug, PartialEq, Eq)]
pub struct FieldLayout {
    pub name: &'static str,
    pub c_type: String,
    pub offset: usize,
    pub bytes: usize,
}

/// A struct that mirrors one in a .cu file.
///
/// # Safety
/// The struct is `repr(C)`, matches the struct of the same name in `FILE`, and has no padding but, where its
/// alignment is more than 8, at the end.
pub unsafe trait KernelArgs: Copy {
    const NAME: &'static str;
    /// The .cu file that declares the struct.
    const FILE: &'static str;
    fn layout() -> Vec<FieldLayout>;
}

/// Declares what a launch file takes from the `.cu` files: argument structs (and the entries of tables in
/// device memory), kernels by their names, and lists of kernels that stand below. All of them are in the
/// file's `BINDINGS`, from which they are loaded and checked against the source, and so is the text of the
/// `.cu` file: it has a variant for each element type, or what the settings after `as` say.
///
/// ```text
/// bindings! { "file.cu" as SETTINGS {
///     struct FileArgs { out: Out<Act>, rows: u64 }
///     kernel FORWARD(FileArgs) = "file_forward";
///     each LIST;
/// } }
/// ```
macro_rules! bindings {
    ($($file:literal $(as $settings:ident)? {
        $($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty),* $(,)? })*
        $(kernel $kernel:ident($args:ident) = $symbol:literal;)*
        $(each $list:ident;)*
    })*) => {
        $($(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy)]
            pub struct $name { $(pub $field: $type),* }

            // SAFETY: `repr(C)` by the line above; the tests of `launch` compare it with the kernel's source
            // and find padding.
            unsafe impl $crate::ops::cuda::args::KernelArgs for $name {
                const NAME: &'static str = stringify!($name);
                const FILE: &'static str = $file;
                fn layout() -> Vec<$crate::ops::cuda::args::FieldLayout> {
                    vec![$($crate::ops::cuda::args::FieldLayout {
                        name: stringify!($field),
                        c_type: <$type as $crate::ops::cuda::args::Field>::c_type(),
                        offset: std::mem::offset_of!($name, $field),
                        bytes: size_of::<$type>(),
                    }),*]
                }
            }
        )*)*

        $($(
            pub const $kernel: $crate::ops::cuda::args::Kernel<$args> =
                $crate::ops::cuda::args::Kernel::new($symbol);
        )*)*

        /// The bindings of this file.
        pub const BINDINGS: $crate::ops::cuda::args::Bindings = $crate::ops::cuda::args::Bindings {
            sources: &[$(
                $crate::ops::cuda::sources::Source::new(
                    $file,
                    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $file)),
                )$(.compiled($crate::ops::cuda::sources::$settings))?
            ),*],
            structs: || vec![$($($crate::ops::cuda::args::StructInfo::of::<$name>(),)*)*],
            kernels: || {
                let single: Vec<$crate::ops::cuda::args::KernelInfo> = vec![$($($kernel.info(),)*)*];
                let listed = std::iter::empty()$($(.chain($list.iter().map(|kernel| kernel.info())))*)*;
                single.into_iter().chain(listed).collect()
            },
        };
    };
}
pub(crate) use bindings;

/// The bindings of a launch file.
pub struct Bindings {
    /// The `.cu` files.
    pub sources: &'static [Source],
    /// Argument structs and entries of tables.
    pub structs: fn() -> Vec<StructInfo>,
    pub kernels: fn() -> Vec<KernelInfo>,
}

/// A bound struct without its type.
#[derive(Debug, PartialEq, Eq)]
pub struct StructInfo {
    pub name: &'static str,
    pub file: &'static str,
    pub bytes: usize,
    pub align: usize,
    pub fields: Vec<FieldLayout>,
}

impl StructInfo {
    pub fn of<A: KernelArgs>() -> StructInfo {
        StructInfo {
            name: A::NAME,
            file: A::FILE,
            bytes: size_of::<A>(),
            align: align_of::<A>(),
            fields: A::layout(),
        }
    }
}

/// A kernel by name, tied to the type of its arguments.
pub struct Kernel<A> {
    pub name: &'static str,
    args: PhantomData<fn(A)>,
}

impl<A: KernelArgs> Kernel<A> {
    pub const fn new(name: &'static str) -> Self {
        Kernel { name, args: PhantomData }
    }

    /// Its name, file and arguments, for the tests and the loader.
    pub fn info(&self) -> KernelInfo {
        KernelInfo { name: self.name, file: A::FILE, args: A::NAME, bytes: size_of::<A>() }
    }
}

/// A kernel without its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    pub name: &'static str,
    pub file: &'static str,
    pub args: &'static str,
    /// Size of the argument struct.
    pub bytes: usize,
}
