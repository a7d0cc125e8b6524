// The library of an HSTU.
#include "hstu.h"
//
#include "run.h"
