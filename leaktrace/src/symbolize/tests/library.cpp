// A function that other files see, and one that they do not, after it.
namespace {
__attribute__((noinline)) int hidden(int value) {
  __asm__ volatile("");
  return value * 7;
}
} // namespace

namespace shapes {
struct Square {
  __attribute__((noinline)) static int area(int side);
};
int Square::area(int side) {
  __asm__ volatile("");
  return hidden(side) + side;
}
} // namespace shapes

extern "C" __attribute__((noinline)) int exported(int value) {
  __asm__ volatile("");
  return shapes::Square::area(value) + 1;
}

extern "C" void *address_of_hidden() { return (void *)hidden; }
